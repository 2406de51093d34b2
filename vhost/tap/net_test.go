package tap_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// One descriptor chain from the UMEM becomes one frame of the tap, 2,000 of 2,000, and no chunk is free before it was copied.
func TestEverySuperframeOfTheRingReachesTheTap(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", v6), func(t *testing.T) {
			const frames = 2000
			n := newNetRig(t, tapvm.AllOffloads, 64*46, tap.NetConfig{})
			s := stream{v6: v6, segments: 45, size: 1428}
			var sent, got int
			next := s
			for got < frames {
				burst := 0
				for ; burst < 16 && sent < frames && n.net.Room() > 0; burst++ {
					f, refs, ok := n.build(next)
					if !ok {
						break
					}
					n.post(f, refs)
					next.seq += uint32(s.segments * s.size)
					sent++
				}
				n.kick()
				for sent-got > 32 || burst == 0 && got < sent {
					h, b, ok := n.read()
					if !ok {
						t.Fatalf("%d sent, %d read; ring: %v", sent, got, n.net.Err())
					}
					want := s
					want.seq = uint32(got * s.segments * s.size)
					n.wantFrame(want, h, b)
					got++
					n.net.Reap(n.free)
				}
				n.net.Reap(n.free)
			}
			n.drain()
			n.empty()
			if n.net.Err() != nil {
				t.Error(n.net.Err())
			}
		})
	}
}

func TestABadFrameIsNotPostedAndTheRingGoesOn(t *testing.T) {
	n := newNetRig(t, tapvm.AllOffloads, 64, tap.NetConfig{})
	for name, spoil := range map[string]func(f *virtio.Frame){
		"a small frame's checksum beyond it, which stops vhost for good": func(f *virtio.Frame) {
			f.Hdr = virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: uint16(f.Len)}
		},
		"no gso_size":      func(f *virtio.Frame) { f.Hdr.GSOSize = 0 },
		"hdr_len too long": func(f *virtio.Frame) { f.Hdr.HdrLen = uint16(f.Len + 1) },
		"not a superframe": func(f *virtio.Frame) { f.Hdr.GSOType = 0 },
	} {
		s := stream{segments: 4, size: 1448}
		f, refs, _ := n.build(s)
		spoil(f)
		if err := n.net.Post(f, refs); !errors.Is(err, tap.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
		n.spare = append(n.spare, refs...)
		if n.net.Pending() != 0 || n.net.Chunks() != 0 {
			t.Fatalf("%s: %d frames and %d chunks are in the ring", name, n.net.Pending(), n.net.Chunks())
		}
		good, refs, _ := n.build(s)
		n.post(good, refs)
		n.kick()
		n.expect(s.frame(nil))
		n.drain()
	}
	n.empty()
}

// Where the frame's bytes lie outside of the UMEM they are copied when posted, wherever they are in the frame.
func TestFragmentsElsewhereAreCopiedAtOnce(t *testing.T) {
	for mask := range 8 {
		n := newNetRig(t, tapvm.AllOffloads, 16, tap.NetConfig{MaxCopy: 4096})
		s := stream{segments: 6, size: 1300}
		f, refs, _ := n.build(s)
		for i := range f.Frags {
			if mask>>(i%3)&1 != 0 && i < 5 { // every pattern of three neighbours
				f.Frags[i] = append([]byte(nil), f.Frags[i]...)
			}
		}
		if err := n.net.Post(f, refs); errors.Is(err, tap.ErrCopy) && mask == 7 {
			n.spare = append(n.spare, refs...)
			continue // 5266 bytes
		} else if err != nil {
			t.Fatal(err)
		}
		for _, r := range refs {
			n.held[r] = true
		}
		for i := range f.Frags {
			if mask>>(i%3)&1 != 0 && i < 5 {
				clear(f.Frags[i])
			}
		}
		n.kick()
		n.expect(s.frame(nil))
		n.drain()
	}
}

func TestBoundsOfAFrame(t *testing.T) {
	n := newNetRig(t, tapvm.AllOffloads, 64, tap.NetConfig{MaxFrags: 8, MaxCopy: 100})
	f, refs, _ := n.build(stream{segments: 8, size: 1000})
	if err := n.net.Post(f, refs); !errors.Is(err, tap.ErrFragments) {
		t.Errorf("9 fragments: %v", err)
	}
	n.spare = append(n.spare, refs...)
	s := stream{segments: 7, size: 1000}
	f, refs, _ = n.build(s)
	if err := n.net.Post(f, make([]uint64, 10)); !errors.Is(err, tap.ErrFragments) {
		t.Errorf("10 chunks: %v", err)
	}
	saved := f.Frags[3]
	f.Frags[3] = make([]byte, 1000)
	if err := n.net.Post(f, refs); !errors.Is(err, tap.ErrCopy) {
		t.Errorf("1000 bytes to copy: %v", err)
	}
	f.Frags[3] = saved
	f.Frags[0] = append([]byte(nil), f.Frags[0]...) // 66 bytes
	n.post(f, refs)
	n.kick()
	n.expect(s.frame(nil))
}

func TestAFullRingTakesMoreAfterReap(t *testing.T) {
	n := newNetRig(t, tapvm.AllOffloads, 64, tap.NetConfig{RingSize: 4})
	s := stream{segments: 4, size: 1448}
	for range 3 {
		for range 4 {
			f, refs, _ := n.build(s)
			n.post(f, refs)
		}
		f, refs, _ := n.build(s)
		if err := n.net.Post(f, refs); !errors.Is(err, tap.ErrFull) {
			t.Fatalf("fifth frame: %v, want ErrFull", err)
		}
		n.spare = append(n.spare, refs...)
		if n.net.Pending() != 4 || n.net.Chunks() != 20 || n.net.Room() != 0 {
			t.Errorf("%d frames, %d chunks, room for %d", n.net.Pending(), n.net.Chunks(), n.net.Room())
		}
		n.kick()
		for range 4 {
			n.expect(s.frame(nil))
		}
		n.drain()
	}
}

// A poster that sleeps is woken for every frame.
func TestCallsWakeASleeper(t *testing.T) {
	n := newNetRig(t, tapvm.AllOffloads, 8, tap.NetConfig{})
	s := stream{segments: 3, size: 1448}
	slept := 0
	for i := range 300 {
		f, refs, _ := n.build(s)
		n.post(f, refs)
		n.kick()
		for n.net.Pending() > 0 {
			if !n.net.ArmCall() {
				slept++
				fd := []unix.PollFd{{Fd: int32(n.net.CallFD()), Events: unix.POLLIN}}
				if k, err := unix.Poll(fd, 10000); k == 0 && err == nil {
					t.Fatalf("frame %d: asleep for good, though it is used: %v", i, n.net.ArmCall())
				}
				n.net.AckCall()
			}
			n.net.Reap(n.free)
		}
		n.expect(s.frame(nil))
	}
	if slept == 0 {
		t.Error("never slept")
	}
}

// The tap is full and the kernel keeps trying: Close takes everything back at once, and says what was not sent.
func TestCloseWithFramesInFlightGivesEveryChunkBack(t *testing.T) {
	const queue, posted = 8, 40
	n := newNetRig(t, tapvm.AllOffloads, 64*46, tap.NetConfig{})
	n.noqueue(queue)
	s := stream{segments: 45, size: 1448}
	for range posted {
		f, refs, _ := n.build(s)
		n.post(f, refs)
	}
	n.kick()
	n.expect(s.frame(nil)) // the worker is at it
	if err := n.net.Close(n.free); err != nil {
		t.Fatal(err)
	}
	if len(n.held) != 0 || n.net.Pending() != 0 || n.net.Chunks() != 0 {
		t.Errorf("%d chunks are held; the ring says %d frames, %d chunks", len(n.held), n.net.Pending(), n.net.Chunks())
	}
	read := 1
	for k, err := n.tap.Read(n.buf); k > 0; k, err = n.tap.Read(n.buf) {
		if err != nil {
			t.Fatal(err)
		}
		read++
	}
	if unsent := n.net.Unsent(); unsent == 0 || read+unsent != posted {
		t.Errorf("%d posted, %d read, %d said to be unsent", posted, read, unsent)
	}
	f, refs, _ := n.build(s)
	if err := errors.Join(n.net.Post(f, refs), n.net.Kick()); !errors.Is(err, tap.ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	n.spare = append(n.spare, refs...)
	if n.net.Reap(n.free) != 0 || !n.net.ArmCall() || !errors.Is(n.net.Err(), tap.ErrClosed) || !errors.Is(n.net.Close(n.free), tap.ErrClosed) {
		t.Error("a closed ring does not say so")
	}
	n.net.AckCall()
}

func TestATapDeletedUnderLoadFreesAllChunks(t *testing.T) {
	n := newNetRig(t, tapvm.AllOffloads, 64*46, tap.NetConfig{RingSize: 64})
	s := stream{segments: 45, size: 1448}
	for i := range 300 {
		for n.net.Room() == 0 || len(n.spare) < 46 {
			if n.net.Reap(n.free) == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		f, refs, _ := n.build(s)
		n.post(f, refs)
		if i%8 == 7 {
			n.kick()
		}
		if i == 100 {
			n.do(func() error { return netlink.LinkDel(n.link) })
		}
	}
	n.kick()
	n.drain()
	if _, err := n.feed.Send([]*virtio.Frame{s.frame(nil)}); !errors.Is(err, tap.ErrGone) {
		t.Errorf("the socket says %v, want ErrGone", err)
	}
}

// The whole way: our ring, the tap, and the guest's own vhost-net, which spreads the frame over its buffers.
func TestTheGuestsVhostMergesTheFrame(t *testing.T) {
	for _, size := range []int{1526, 4096, 65550} {
		t.Run(fmt.Sprintf("buffers of %d", size), func(t *testing.T) {
			n := newNetRig(t, tapvm.AllOffloads, 46, tap.NetConfig{})
			g, err := tap.OpenGuest(tap.GuestConfig{Tap: n.tap.FD, BufferLen: size, RingSize: 256})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := g.Close(); err != nil {
					t.Error(err)
				}
			}()
			s := stream{segments: 45, size: 1448}
			for range 100 {
				f, refs, _ := n.build(s)
				n.post(f, refs)
				n.kick()
				n.receive(g, func(packet []byte) {
					var h virtio.NetHdr
					if err := h.Decode(packet); err != nil {
						t.Fatal(err)
					}
					if want := (len(packet) + size - 1) / size; int(h.NumBuffers) != want {
						t.Errorf("num_buffers %d, want %d", h.NumBuffers, want)
					}
					if err := virtio.CheckRx(&h, packet[virtio.HdrSize:], tapvm.AllOffloads.Features()); err != nil {
						t.Error(err)
					}
					h.NumBuffers = 0
					n.wantFrame(s, h, packet[virtio.HdrSize:])
				})
				n.drain()
				s.seq += uint32(s.segments * s.size)
			}
		})
	}
}

// receive takes exactly one frame.
func (n *netRig) receive(g *tap.Guest, fn func(packet []byte)) {
	n.t.Helper()
	rx, _ := g.CallFDs()
	for {
		count, err := g.Receive(1, fn)
		if err != nil {
			n.t.Fatal(err)
		}
		if count > 0 {
			return
		}
		if !g.Arm(false) {
			fd := []unix.PollFd{{Fd: int32(rx), Events: unix.POLLIN}}
			if k, err := unix.Poll(fd, 10000); k == 0 && err == nil {
				n.t.Fatal("the guest gets nothing")
			}
		}
		g.Ack()
	}
}

func TestAvailableSaysYesWhereItIs(t *testing.T) {
	netnstest.Need(t, netnstest.Vhost)
	if err := tap.Available(); err != nil {
		t.Error(err)
	}
}

func TestImpossibleSizesAreRefused(t *testing.T) {
	r := newRig(t, tapvm.AllOffloads)
	for _, c := range []tap.NetConfig{
		{}, {Backend: r.feed, RingSize: 3}, {Backend: r.feed, RingSize: 65536}, {Backend: r.feed, MaxFrags: 1024}, {Backend: r.feed, MaxCopy: -1},
	} {
		if n, err := tap.OpenNet(c); !errors.Is(err, tap.ErrConfig) {
			t.Errorf("%+v: %v, want ErrConfig", c, err)
			if err == nil {
				_ = n.Close(func(uint64) {})
			}
		}
	}
}
