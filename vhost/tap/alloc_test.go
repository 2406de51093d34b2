//go:build !race

package tap_test

import (
	"testing"

	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Also a batch that ends in an error allocates nothing: overload is when errors come by the thousand.
func TestSendDoesNotAllocate(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	r.noqueue(8)
	s := stream{segments: 45, size: 1448}
	bad := s.frame(nil)
	bad.Hdr.HdrLen = 0
	frames := []*virtio.Frame{s.frame(nil), s.frame(nil), s.plain(), bad}
	full := 0
	n := testing.AllocsPerRun(200, func() {
		if _, err := r.feed.Send(frames); err == tap.ErrFull {
			full++
			for n := 1; n > 0; n, _ = r.tap.Read(r.buf) {
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	if full == 0 {
		t.Error("the tap was never full: not all of Send was measured")
	}
}

func TestTheRingDoesNotAllocate(t *testing.T) {
	n := newNetRig(t, tapvm.AllOffloads, 46*8, tap.NetConfig{RingSize: 8})
	s := stream{segments: 45, size: 1448}
	type item struct {
		f    *virtio.Frame
		refs []uint64
	}
	var items []item
	for range 4 {
		f, refs, _ := n.build(s)
		f.Frags[0] = append([]byte(nil), f.Frags[0]...)
		items = append(items, item{f, refs})
	}
	bad := s.frame(nil)
	bad.Hdr.HdrLen = 0
	var back int
	free := func(uint64) { back++ }
	calls := testing.AllocsPerRun(200, func() {
		for _, it := range items {
			if err := n.net.Post(it.f, it.refs); err != nil {
				t.Fatal(err)
			}
		}
		if n.net.Post(bad, nil) == nil || n.net.Kick() != nil {
			t.Fatal("a bad frame was posted, or the ring is broken")
		}
		for n.net.Pending() > 0 {
			n.net.ArmCall()
			n.net.AckCall()
			n.net.Reap(free)
		}
		for k := 1; k > 0; k, _ = n.tap.Read(n.buf) {
		}
	})
	if calls != 0 {
		t.Errorf("%v allocations", calls)
	}
	for _, it := range items {
		n.spare = append(n.spare, it.refs...)
	}
	if back == 0 {
		t.Error("no chunk came back")
	}
}
