package netdev_test

import (
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// The kernel tells of a veth that it runs XDP itself, and again and again: what lies in memory behind a request is not sent.
func TestADriverTellsItsXDPFeatures(t *testing.T) {
	netnstest.Need(t, netnstest.Kernel(6, 3))
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	h := in(t, n.B)
	for range 100 {
		f, err := h.XDPFeatures(n.B.Index)
		if err != nil || !f.Native() || f.ZeroCopy() {
			t.Fatalf("features %#x, %v", uint64(f), err)
		}
		if _, err := h.ListedQueues(n.B.Index); err != nil && netnstest.Kernel(6, 8).Check() == nil {
			t.Fatal(err)
		}
	}
	if _, err := h.XDPFeatures(1 << 20); err == nil {
		t.Error("an interface that is not there has features")
	}
}
