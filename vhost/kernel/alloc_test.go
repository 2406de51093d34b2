//go:build !race

package kernel_test

import (
	"testing"

	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/kernel"
)

// Also a batch that ends in an error allocates nothing: overload is when errors come by the thousand.
func TestSendDoesNotAllocate(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	r.noqueue(8)
	s := stream{segments: 45, size: 1448}
	bad := s.frame(nil)
	bad.Hdr.HdrLen = 0
	frames := []*kernel.Frame{s.frame(nil), s.frame(nil), s.plain(), bad}
	full := 0
	n := testing.AllocsPerRun(200, func() {
		if _, err := r.feed.Send(frames); err == kernel.ErrFull {
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
