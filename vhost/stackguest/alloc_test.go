//go:build !race

package stackguest

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

func TestMovingFramesDoesNotAllocate(t *testing.T) {
	r := newRig(t, DefaultFeatures, 64, 1536)
	h, frame := superframe(20 * 1448)
	h.NumBuffers = uint16((len(frame) + virtio.HdrSize + 1535) / 1536)
	hdr := make([]byte, virtio.HdrSize)
	h.Encode(hdr)
	all := append(hdr, frame...)
	sink := make([]byte, 1<<17)
	var c vring.Chain
	used := make([]vring.Used, 1)
	run := func() {
		for b := all; len(b) > 0; {
			if ok, err := r.rxDev.Next(&c); !ok || err != nil {
				t.Fatal("no buffer", err)
			}
			n := copy(c.Writable[0], b)
			used[0] = vring.Used{Head: c.Head, Written: uint32(n)}
			r.rxDev.Push(used)
			b = b[n:]
		}
		r.rxDev.Publish()
		if n, err := r.p.rx.turn(r.p.tap, rxBudget, &r.p.c); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		_, _ = unix.Read(r.stack, sink)
		_, _ = unix.Write(r.stack, all)
		if n, err := r.p.tx.turn(r.p.tap, txBudget, &r.p.c); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if ok, err := r.txDev.Next(&c); !ok || err != nil {
			t.Fatal("no frame", err)
		}
		used[0] = vring.Used{Head: c.Head}
		r.txDev.Push(used)
		r.txDev.Publish()
		r.p.c.publish()
		signal(r.p.rx.kick)
	}
	if n := testing.AllocsPerRun(200, run); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
	if r.p.c.violations+r.p.c.tapErrors != 0 {
		t.Errorf("counters %+v", r.p.c)
	}
}
