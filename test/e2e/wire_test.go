package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// An uplink changes hands under a stream, by an upgrade and by crashes: what arrives is whole, every packet is explained, and the kernel
// finds nothing wrong in the rings. One stream is what an emulated machine mostly carries beside that, so this runs on the NICs of
// RSCCTL_WIRE too, which have to be in zero-copy.
func TestAnUplinkChangesHandsUnderAStream(t *testing.T) {
	if netnstest.Emulated() && !netnstest.Wired() {
		t.Skip("allowed: 2 s for an heir are few for an emulated machine: the unit stage runs it on a real one, and test/hostvm -wire on emulated NICs")
	}
	r := newRig(t, netnstest.Options{NoIPv6: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	want := api.XSKCopy
	if netnstest.Wired() {
		want = api.XSKZeroCopy
	}
	var st api.Status
	if r.json(&st, "status"); st.Interfaces[0].XSKMode != want {
		t.Fatalf("AF_XDP mode %s, want %s", st.Interfaces[0].XSKMode, want)
	}
	stop := make(chan struct{})
	done := r.transfers(g.side, stop)
	merging := func() {
		t.Helper()
		var before api.Stats
		r.json(&before, "stats")
		r.eventually("the stream is merged", func() error {
			var st api.Stats
			if r.json(&st, "stats"); st.VMs[0].Superframes < before.VMs[0].Superframes+10 {
				return fmt.Errorf("%d superframes: %w", st.VMs[0].Superframes-before.VMs[0].Superframes, errNotYet)
			}
			return nil
		})
	}
	for _, change := range []func(){func() { t.Log("replaced:", r.replace()) }, r.crash, r.crash} {
		merging()
		change()
		g.calm(t)
	}
	merging()
	r.whole(stop, done)
	netnstest.Bulk(t, g.side, r.net.A, 1<<20, false, time.Minute)
	r.json(&st, "status")
	for _, q := range st.Interfaces[0].Queues {
		t.Logf("%s, %s: %+v", st.Interfaces[0].Driver, st.Interfaces[0].XSKMode, q)
		if q.RxInvalid+q.TxInvalid+q.RxTooLong != 0 {
			t.Errorf("queue %d: %+v", q.ID, q)
		}
	}
}
