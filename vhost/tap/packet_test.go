package tap_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// send wants all frames to be sent.
func (r *rig) send(frames ...*virtio.Frame) {
	r.t.Helper()
	if n, err := r.feed.Send(frames); n != len(frames) || err != nil {
		r.t.Fatalf("sent %d of %d: %v", n, len(frames), err)
	}
}

func TestSuperframesReachTheTapWhole(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	for _, s := range []stream{
		{segments: 45, size: 1448}, {v6: true, segments: 45, size: 1428}, {segments: 2, size: 8},
		{segments: 45, size: 1448, flags: 0x80}, {segments: 500, size: 100},
	} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			f := s.frame(nil)
			r := *r
			r.t = t
			f.Frags = append(f.Frags, nil) // says nothing
			r.send(f)
			r.expect(f)
			r.empty()
		})
	}
}

// A superframe of tiny segments is refused, so that it is sent packet by packet: some kernels lose it on its way to the tap, without a word.
func TestSuperframesThatSomeKernelsLoseAreRefused(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	for _, size := range []int{1, 7} {
		f := stream{segments: 2, size: size}.frame(nil)
		if n, err := r.feed.Send([]*virtio.Frame{f}); n != 0 || !errors.Is(err, tap.ErrSmall) || !errors.Is(err, tap.ErrRefused) {
			t.Errorf("of %d bytes each: sent %d, %v", size, n, err)
		}
	}
	r.empty()
}

func TestTheLongestSuperframeIsNotCut(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	f := stream{segments: 1, size: tap.MaxLen - 66}.frame(nil)
	f.Hdr.GSOSize = 1448
	r.send(f)
	r.expect(f)
	over := stream{segments: 1, size: tap.MaxLen - 65}.frame(nil)
	over.Hdr.GSOSize = 1448
	if n, err := r.feed.Send([]*virtio.Frame{over}); n != 0 || !errors.Is(err, tap.ErrTooLong) {
		t.Errorf("one byte more: sent %d, %v", n, err)
	}
	r.empty()
}

func TestPlainFramesOfTheMTUPass(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	f := stream{size: 1500 - 52}.plain()
	tagged := stream{size: 1500 - 52}.plain()
	tagged.Frags[0] = append(append(append([]byte{}, tagged.Frags[0][:12]...), 0x81, 0, 0, 5), tagged.Frags[0][12:]...)
	tagged.Len += 4
	r.send(f, tagged)
	r.expect(f)
	r.expect(tagged)
	long := stream{size: 1500 - 51}.plain()
	if n, err := r.feed.Send([]*virtio.Frame{long}); n != 0 || !errors.Is(err, tap.ErrMTU) {
		t.Errorf("one byte more: sent %d, %v", n, err)
	}
}

// More frames than one call takes, and more pieces than one batch holds, still arrive once each and in order.
func TestLongListsAreSentInOrder(t *testing.T) {
	for _, tt := range []struct{ frames, segments int }{{3*tap.MaxBatch + 1, 2}, {tap.MaxBatch, 200}} {
		t.Run(fmt.Sprintf("%d frames of %d", tt.frames, tt.segments), func(t *testing.T) {
			r := newRig(t, tapvm.AllOffloads)
			var frames []*virtio.Frame
			for i := range tt.frames {
				frames = append(frames, stream{segments: tt.segments, size: 8, seq: uint32(i * tt.segments * 8)}.frame(nil))
			}
			r.send(frames...)
			for _, f := range frames {
				r.expect(f)
			}
			r.empty()
		})
	}
}

func TestABadFrameStopsTheBatchThereAndNoWhereElse(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	s := stream{segments: 3, size: 1448}
	bad := s.frame(nil)
	bad.Hdr.GSOSize = 0
	list := []*virtio.Frame{s.frame(nil), stream{v6: true, segments: 4, size: 1000}.frame(nil), bad, s.plain()}
	if n, err := r.feed.Send(list); n != 2 || !errors.Is(err, tap.ErrRefused) {
		t.Fatalf("sent %d, %v; want 2 and ErrRefused", n, err)
	}
	r.send(list[3:]...)
	r.expect(list[0])
	r.expect(list[1])
	r.expect(list[3])
	r.empty()
}

// What the kernel refuses is told apart from what went before it, though one system call had them all.
func TestAFrameThatTheKernelRefusesIsNamed(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	r.do(func() error { return netlink.LinkSetMTU(r.link, 1000) }) // and nobody told the feed
	list := []*virtio.Frame{stream{size: 900}.plain(), stream{size: 1400}.plain(), stream{size: 800}.plain()}
	if n, err := r.feed.Send(list); n != 1 || !errors.Is(err, tap.ErrKernelRefused) || !errors.Is(err, tap.ErrRefused) {
		t.Fatalf("sent %d, %v; want 1 and ErrKernelRefused", n, err)
	}
	r.send(list[2])
	r.expect(list[0])
	r.expect(list[2])
	if err := r.feed.Refresh(); err != nil || r.feed.MTU() != 1000 {
		t.Fatalf("MTU %d, %v; want 1000", r.feed.MTU(), err)
	}
	if _, err := r.feed.Send(list[1:2]); !errors.Is(err, tap.ErrMTU) {
		t.Errorf("after Refresh: %v, want ErrMTU", err)
	}
	r.empty()
}

func TestAFullTapIsToldWhereTheKernelTells(t *testing.T) {
	const length = 16
	r := newRig(t, tapvm.AllOffloads)
	r.noqueue(length)
	s := stream{segments: 45, size: 1448}
	var list []*virtio.Frame
	for i := range 20 {
		s.seq = uint32(i)
		list = append(list, s.frame(nil))
	}
	if n, err := r.feed.Send(list); n != length || !errors.Is(err, tap.ErrFull) {
		t.Fatalf("sent %d, %v; want %d and ErrFull", n, err, length)
	}
	r.expect(list[0])
	if n, err := r.feed.Send(list[length:]); n == 0 || n == len(list)-length || !errors.Is(err, tap.ErrFull) {
		t.Fatalf("with some room: sent %d, %v", n, err)
	}
	r.expect(list[1])
}

// With a queueing discipline the kernel takes the frame and the tap drops it: sent frames are those read and those counted.
func TestAFullTapBehindAQueueingDisciplineCounts(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	r.do(func() error { return netlink.LinkSetTxQLen(r.link, 16) })
	before := r.statistics().TxDropped
	f := stream{segments: 45, size: 1448}.frame(nil)
	for range 40 {
		r.send(f)
	}
	got := 0
	for n, err := r.tap.Read(r.buf); n > 0; n, err = r.tap.Read(r.buf) {
		if err != nil {
			t.Fatal(err)
		}
		got++
	}
	if dropped := r.statistics().TxDropped - before; got != 16 || dropped != 24 {
		t.Errorf("%d read and %d counted as dropped, want 16 and 24", got, dropped)
	}
}

func TestATapThatGoesIsTold(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	f := []*virtio.Frame{stream{segments: 2, size: 100}.frame(nil)}
	r.do(func() error { return netlink.LinkSetDown(r.link) })
	if n, err := r.feed.Send(f); n != 0 || !errors.Is(err, tap.ErrDown) || !errors.Is(err, tap.ErrGone) {
		t.Errorf("link down: sent %d, %v; want ErrDown", n, err)
	}
	if err := r.feed.Refresh(); !errors.Is(err, tap.ErrDown) || r.feed.MTU() != 1500 {
		t.Errorf("refresh: %v, MTU %d", err, r.feed.MTU())
	}
	r.do(func() error {
		p, err := tap.OpenPacket(r.link.Attrs().Index) // also while it is down
		if err != nil {
			return err
		}
		return p.Close()
	})
	r.do(func() error { return netlink.LinkSetUp(r.link) })
	r.settled()
	if err := r.feed.Refresh(); err != nil {
		t.Errorf("refresh: %v", err)
	}
	r.send(f...)
	r.expect(f[0])
	if err := r.tap.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := r.feed.Send(f); n != 0 || !errors.Is(err, tap.ErrGone) || errors.Is(err, tap.ErrDown) {
			t.Errorf("tap removed: sent %d, %v; want ErrGone", n, err)
		}
	}
	if err := r.feed.Refresh(); !errors.Is(err, tap.ErrGone) {
		t.Errorf("refresh: %v, want ErrGone", err)
	}
	err := r.ns.Do(func() error {
		p, err := tap.OpenPacket(r.link.Attrs().Index)
		if err == nil {
			_ = p.Close()
		}
		return err
	})
	if !errors.Is(err, tap.ErrGone) {
		t.Errorf("open: %v, want ErrGone", err)
	}
}

func TestAClosedPacketSendsNothing(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	f := []*virtio.Frame{stream{segments: 2, size: 100}.frame(nil)}
	p := r.feed
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Send(f); n != 0 || !errors.Is(err, tap.ErrClosed) {
		t.Errorf("sent %d, %v; want ErrClosed", n, err)
	}
	if err := p.Close(); !errors.Is(err, tap.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	r.do(func() (err error) {
		r.feed, err = tap.OpenPacket(r.link.Attrs().Index)
		return err
	})
}

// A guest that cannot take a superframe gets the same bytes in frames that it can take.
func TestTheKernelCutsWhatTheGuestCannotTake(t *testing.T) {
	type offload = tapvm.Offload
	for _, tt := range []struct {
		name   string
		guest  offload
		s      stream
		frames int
	}{
		{"all on, IPv4", tapvm.AllOffloads, stream{segments: 14, size: 1448}, 1},
		{"all on, IPv6", tapvm.AllOffloads, stream{v6: true, segments: 14, size: 1428}, 1},
		{"TSO4 off", tapvm.CSUM | tapvm.TSO6, stream{segments: 14, size: 1448}, 14},
		{"TSO4 off, IPv6", tapvm.CSUM | tapvm.TSO6, stream{v6: true, segments: 14, size: 1428}, 1},
		{"TSO6 off", tapvm.CSUM | tapvm.TSO4, stream{v6: true, segments: 14, size: 1428}, 14},
		{"ECN off", tapvm.CSUM | tapvm.TSO4 | tapvm.TSO6, stream{segments: 14, size: 1448, flags: 0x80}, 14},
		{"ECN off, no CWR", tapvm.CSUM | tapvm.TSO4 | tapvm.TSO6, stream{segments: 14, size: 1448}, 1},
		{"CSUM off, IPv4", 0, stream{segments: 14, size: 1448}, 14},
		{"CSUM off, IPv6", 0, stream{v6: true, segments: 14, size: 1428}, 14},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tapvm.AllOffloads)
			if err := r.tap.SetOffload(tt.guest); err != nil { // at run time, as a guest's driver does
				t.Fatal(err)
			}
			r.send(tt.s.frame(nil))
			r.wantStream(tt.s, tt.guest.Features(), tt.frames)
		})
	}
}

// wantStream reads a number of frames and wants them to hold the stream's bytes in order, each legal for the guest.
func (r *rig) wantStream(s stream, f virtio.Features, frames int) {
	r.t.Helper()
	seq := s.seq
	for range frames {
		h, b, ok := r.read()
		if !ok {
			r.t.Fatalf("stream ends after %d of %d bytes", seq-s.seq, s.segments*s.size)
		}
		data, err := s.payload(h, b, f)
		if err != nil {
			r.t.Fatal(err)
		}
		for i, v := range data {
			if v != fill(seq) {
				r.t.Fatalf("byte %d of a frame of %d differs", i, len(data))
			}
			seq++
		}
	}
	if int(seq-s.seq) != s.segments*s.size {
		r.t.Fatalf("%d bytes of %d in %d frames", seq-s.seq, s.segments*s.size, frames)
	}
	r.empty()
}
