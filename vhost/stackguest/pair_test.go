package stackguest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

func (r *rig) rxTurn() int {
	r.t.Helper()
	n, err := r.p.rx.turn(r.p.tap, rxBudget, &r.p.c)
	must(r.t, err)
	return n
}

// Every size over every alignment to the circle's end: 16 buffers of 256 bytes are passed many times.
func TestFramesReachTheStackWhole(t *testing.T) {
	r := newRig(t, DefaultFeatures, 16, 256)
	sent := 0
	for n := 60; n < 3000; n += 37 {
		frame := udpFrame(n)
		r.deliver(virtio.NetHdr{}, frame)
		if got := r.rxTurn(); got != 1 {
			t.Fatalf("%d bytes: %d frames moved", n, got)
		}
		got := r.taken()
		if len(got) != virtio.HdrSize+n || !bytes.Equal(got[virtio.HdrSize:], frame) {
			t.Fatalf("%d bytes: the stack got %d", n, len(got))
		}
		sent++
	}
	r.p.c.publish()
	var s Stats
	r.p.c.shared.addTo(&s)
	if s.RxFrames != uint64(sent) || s.Violations != 0 {
		t.Errorf("counters %+v", s)
	}
}

func TestBuffersGoBackToTheBackEnd(t *testing.T) {
	r := newRig(t, DefaultFeatures, 16, 256)
	for range 5 {
		for range 16 {
			r.push(make([]byte, 72))
		}
		r.rxDev.Publish()
		r.rxTurn()
	}
}

func TestSuperframeIsOneWriteWithItsHeader(t *testing.T) {
	for _, size := range []int{1536, 4096} {
		r := newRig(t, DefaultFeatures, 64, size)
		h, frame := superframe(45 * 1448)
		r.deliver(h, frame)
		r.rxTurn()
		got := r.taken()
		if !bytes.Equal(got[virtio.HdrSize:], frame) {
			t.Fatalf("buffers of %d: frame differs, %d bytes", size, len(got))
		}
		var seen virtio.NetHdr
		must(t, seen.Decode(got))
		if seen.GSOSize != 1448 || seen.GSOType != virtio.GSOTCPv4 {
			t.Errorf("buffers of %d: header %+v", size, seen)
		}
		if c := r.p.c; c.segments != 45 || c.dataFrames != 1 || c.violations != 0 || c.largest != uint64(len(frame)) {
			t.Errorf("buffers of %d: counters %+v", size, c)
		}
	}
}

func TestViolationsAreFound(t *testing.T) {
	super, superBytes := superframe(10 * 1448)
	super.NumBuffers = 10
	noCsum := super
	noCsum.Flags = 0
	tests := []struct {
		name string
		do   func(r *rig)
		want string
		lost bool // the frame cannot be handed on
	}{
		{"num_buffers is 0", func(r *rig) { r.deliverAs(virtio.NetHdr{}, udpFrame(100)) }, errNumBuffers.Error(), true},
		{"num_buffers is more than was published", func(r *rig) {
			r.deliverAs(virtio.NetHdr{NumBuffers: 3}, udpFrame(100))
		}, errMissing.Error(), true},
		{"a buffer in the middle has room left", func(r *rig) {
			var b [100]byte
			(&virtio.NetHdr{NumBuffers: 2}).Encode(b[:])
			r.push(b[:])
			r.push(b[:])
			r.rxDev.Publish()
		}, errNotFull.Error(), true},
		{"used length shorter than a header", func(r *rig) {
			r.push(make([]byte, 11))
			r.rxDev.Publish()
		}, errNoHeader.Error(), true},
		{"superframe without NEEDS_CSUM", func(r *rig) { r.deliver(noCsum, superBytes) }, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, DefaultFeatures, 64, 1536)
			tt.do(r)
			r.rxTurn()
			r.p.c.publish()
			var s Stats
			r.p.c.shared.addTo(&s)
			if s.Violations != 1 || !strings.Contains(s.First, tt.want) {
				t.Errorf("%d violations, first %q, want %q", s.Violations, s.First, tt.want)
			}
			if got := r.taken(); (got == nil) != tt.lost {
				t.Errorf("the stack got %d bytes", len(got))
			}
			// Whatever it was, the next good frame arrives.
			good := udpFrame(100)
			r.deliver(virtio.NetHdr{}, good)
			r.rxTurn()
			if got := r.taken(); !bytes.HasSuffix(got, good) {
				t.Errorf("the frame after it: %d bytes", len(got))
			}
		})
	}
}

func TestStackFramesReachTheBackEndWithTheirHeader(t *testing.T) {
	r := newRig(t, DefaultFeatures, 16, 1536)
	h, frame := superframe(40000)
	for round := range 40 {
		b := make([]byte, virtio.HdrSize, virtio.HdrSize+len(frame))
		h.NumBuffers = 0xffff // the kernel leaves these bytes alone; they must not reach the back-end
		h.Encode(b)
		_, err := unix.Write(r.stack, append(b, frame...))
		must(t, err)
		n, err := r.p.tx.turn(r.p.tap, txBudget, &r.p.c)
		must(t, err)
		if n != 1 {
			t.Fatalf("round %d: %d frames moved", round, n)
		}
		var c vring.Chain
		ok, err := r.txDev.Next(&c)
		must(t, err)
		if !ok || len(c.Readable) != 1 {
			t.Fatalf("round %d: no frame in the ring", round)
		}
		var got virtio.NetHdr
		must(t, got.Decode(c.Readable[0]))
		if want := h; got.GSOSize != want.GSOSize || got.NumBuffers != 0 {
			t.Fatalf("round %d: header %+v", round, got)
		}
		if !bytes.Equal(c.Readable[0][virtio.HdrSize:], frame) {
			t.Fatalf("round %d: frame differs", round)
		}
		r.txDev.Push([]vring.Used{{Head: c.Head}})
		r.txDev.Publish()
	}
}

func TestFullTransmitRingLeavesFramesInTheTap(t *testing.T) {
	r := newRig(t, DefaultFeatures, 4, 1536)
	for range 6 {
		_, err := unix.Write(r.stack, make([]byte, 100))
		must(t, err)
	}
	n, err := r.p.tx.turn(r.p.tap, txBudget, &r.p.c)
	must(t, err)
	if n != 4 {
		t.Fatalf("%d frames moved into a ring of 4", n)
	}
	var c vring.Chain
	for range 4 {
		_, err := r.txDev.Next(&c)
		must(t, err)
		r.txDev.Push([]vring.Used{{Head: c.Head}})
	}
	r.txDev.Publish()
	if n, err = r.p.tx.turn(r.p.tap, txBudget, &r.p.c); err != nil || n != 2 {
		t.Fatalf("%d frames moved, %v", n, err)
	}
}

// The loop sleeps when nothing moves, wakes for either side, and ends when told to.
func TestLoopWakesForBothSides(t *testing.T) {
	r := newRig(t, DefaultFeatures, 16, 1536)
	ended := make(chan error, 1)
	go func() { ended <- r.p.run() }()
	r.deliver(virtio.NetHdr{}, udpFrame(100))
	signal(r.p.rxCall)
	await(t, "the stack's frame", func() bool { return r.taken() != nil })
	_, err := unix.Write(r.stack, make([]byte, 100))
	must(t, err)
	await(t, "the back-end's frame", func() bool {
		var c vring.Chain
		ok, err := r.txDev.Next(&c)
		must(t, err)
		return ok
	})
	signal(r.p.stop)
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("the loop did not end")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s did not come", what)
}
