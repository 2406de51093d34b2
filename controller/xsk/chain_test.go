package xsk

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/test/netnstest"
)

const (
	chainChunks = 64
	chainFrames = 4
)

// multiBuffer is the kernel that brings a frame in several chunks.
var multiBuffer = netnstest.Kernel(6, 6)

// jumboSocket is a socket with buffers, and its kernel.
func jumboSocket(t *testing.T) (*Socket, *fakeKernel) {
	t.Helper()
	m := heap(chainChunks, LargeChunk, 64)
	m.frame = FrameFor(9000)
	m.umem = make([]byte, chainChunks*LargeChunk+chainFrames*m.frame)
	s := m.socket(64, 8)
	s.Refill()
	return s, m.kernel(s)
}

// jumbo puts a frame into the RX ring as the kernel does, its metadata in front of the first piece, and returns its bytes. open: its end
// does not come.
func (k *fakeKernel) jumbo(t *testing.T, length int, open bool) []byte {
	t.Helper()
	whole := make([]byte, length)
	for i := range whole {
		whole[i] = byte(i*7 + length)
	}
	var one [1]uint64
	for left := whole; len(left) > 0; {
		if consume(&k.fill, one[:]) != 1 {
			t.Fatal("the fill ring is empty")
		}
		d := Desc{Addr: one[0] + Headroom, Len: uint32(min(len(left), LargeChunk-Headroom))}
		if len(left) == length {
			copy(k.s.umem.meta(d), bytes.Repeat([]byte{0xab, byte(length)}, MetaSize/2))
		}
		copy(k.s.umem.frame(d), left)
		left = left[d.Len:]
		k.rx.put(d)
		if len(left) > 0 || open {
			k.rx.entries[(k.rx.cachedP-1)&k.rx.mask].options = unix.XDP_PKT_CONTD
		}
	}
	return whole
}

// mustHaveAll looks that nothing of the memory is lost.
func mustHaveAll(t *testing.T, s *Socket) {
	t.Helper()
	mustConserve(t, s, chainChunks)
	for i, word := range s.umem.owner {
		if word == inHand {
			t.Errorf("chunk %d is in nobody's hand", i)
		}
	}
	if n := s.LargeRoom(); n != chainFrames {
		t.Errorf("%d of %d buffers are free", n, chainFrames)
	}
}

// A frame in several chunks comes as one, with what XDP wrote in front of it, in its order among the others; its chunks are free at once.
func TestAFrameInSeveralChunksComesAsOne(t *testing.T) {
	s, k := jumboSocket(t)
	var want [][]byte
	for _, n := range []int{100, 9014, 3840, 3841, 9018} {
		want = append(want, k.jumbo(t, n, false))
	}
	k.rx.publish()
	var d [8]Desc
	if n := s.Recv(d[:]); n != len(want) {
		t.Fatalf("%d frames, want %d", n, len(want))
	}
	for i, d := range d[:len(want)] {
		f, m := s.Received(d)
		if !bytes.Equal(f, want[i]) || cap(f) != len(f) {
			t.Errorf("frame %d of %d bytes is another, of %d and %d", i, len(want[i]), len(f), cap(f))
		}
		if !bytes.Equal(m, bytes.Repeat([]byte{0xab, byte(len(want[i]))}, MetaSize/2)) {
			t.Errorf("frame %d: metadata %x", i, m)
		}
		if part, _ := s.Received(Desc{d.Addr + 4, d.Len - 4}); !bytes.Equal(part, want[i][4:]) {
			t.Errorf("frame %d: what a tag was taken off is not found again", i)
		}
	}
	if len(s.umem.free) != chainChunks-56+3+2+3 { // all but the reserve is in the fill ring, and what was copied is back
		t.Errorf("%d chunks are free while the frames are held", len(s.umem.free))
	}
	for _, d := range d[:len(want)] {
		s.Free(d.Addr + 4)
		s.Free(d.Addr) // a second time: ignored
	}
	if s.Lost() != (Lost{}) {
		t.Errorf("lost %+v", s.Lost())
	}
	mustHaveAll(t, s)
}

// A frame whose end is not there yet waits, and so does all behind it: a burst that ends in the middle goes on with the next look.
func TestABurstThatEndsInAFrameGoesOnWithIt(t *testing.T) {
	s, k := jumboSocket(t)
	first := k.jumbo(t, 9014, false)
	second := k.jumbo(t, 9000, false)
	whole := k.rx.cachedP
	k.rx.cachedP -= 2 // of the second one a piece is there
	k.rx.publish()
	var d [8]Desc
	if n := s.Recv(d[:]); n != 1 || !bytes.Equal(frameOf(s, d[0]), first) {
		t.Fatalf("%d frames", n)
	}
	if got := *s.rx.consumer; got != whole-3 {
		t.Errorf("released up to %d: who goes on after a crash would begin in the middle of a frame", got)
	}
	if n := s.Recv(d[1:]); n != 0 {
		t.Fatalf("%d frames of a piece", n)
	}
	k.rx.cachedP = whole
	k.rx.publish()
	if n := s.Recv(d[1:]); n != 1 || !bytes.Equal(frameOf(s, d[1]), second) {
		t.Fatalf("%d frames", n)
	}
	s.FreeAll([]uint64{d[0].Addr, d[1].Addr})
	mustHaveAll(t, s)
}

// A frame that is too long, or does not end, or for which no buffer is free, is given up and counted, with all of its pieces: nothing of it is
// in the frame behind it.
func TestAFrameThatCannotBeOneIsCountedAndNotMixed(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(t *testing.T, s *Socket, k *fakeKernel)
		want Lost
	}{
		"longer than a buffer": {func(t *testing.T, _ *Socket, k *fakeKernel) { k.jumbo(t, 12000, false) }, Lost{Broken: 1}},
		"without an end": {func(t *testing.T, s *Socket, k *fakeKernel) {
			for range maxPieces + 2 {
				k.jumbo(t, 100, true)
			}
			k.jumbo(t, 50, false)
		}, Lost{Broken: 1}},
		"a piece that is not the kernel's": {func(t *testing.T, s *Socket, k *fakeKernel) {
			k.jumbo(t, 9014, false)
			k.rx.entries[(k.rx.cachedP-2)&k.rx.mask].addr = 63*LargeChunk + Headroom
		}, Lost{Broken: 1}},
		"no buffer": {func(t *testing.T, s *Socket, k *fakeKernel) {
			for range chainFrames {
				s.umem.large.take()
			}
			k.jumbo(t, 9014, false)
		}, Lost{NoBuffer: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := jumboSocket(t)
			c.put(t, s, k)
			behind := k.jumbo(t, 700, false)
			k.rx.publish()
			var d [8]Desc
			got := d[:0]
			for range 4 {
				got = append(got, d[:s.Recv(d[len(got):])]...)
			}
			if len(got) != 1 || !bytes.Equal(frameOf(s, got[0]), behind) {
				t.Errorf("%d frames, want the one behind", len(got))
			}
			if s.Lost() != c.want {
				t.Errorf("lost %+v, want %+v", s.Lost(), c.want)
			}
			s.Free(got[0].Addr)
			for i, word := range s.umem.owner {
				if word == inHand {
					t.Errorf("chunk %d is in nobody's hand", i)
				}
			}
		})
	}
}

// A frame that no chunk holds is sent in several, which the kernel sees at once or not at all.
func TestAFrameThatNoChunkHoldsIsSentInSeveral(t *testing.T) {
	s, k := jumboSocket(t)
	buf, d, ok := s.AllocLarge()
	if !ok || len(buf) < 9018 {
		t.Fatalf("%d bytes, %t", len(buf), ok)
	}
	for i := range buf {
		buf[i] = byte(i * 3)
	}
	want := slices.Clone(buf[:9018])
	if !s.Send(d, 9018) || s.TxPending() != 3 || s.LargeRoom() != chainFrames {
		t.Fatalf("%d pieces pending, %d buffers free", s.TxPending(), s.LargeRoom())
	}
	if k.tx.ready(1) != 0 {
		t.Error("the kernel sees it before Publish")
	}
	s.Publish()
	var got []byte
	for i, n := 0, k.tx.ready(8); i < int(n); i++ {
		e := k.tx.entries[(k.tx.cachedC+uint32(i))&k.tx.mask]
		if more := e.options == unix.XDP_PKT_CONTD; more != (i < int(n)-1) {
			t.Errorf("piece %d of %d: options %d", i, n, e.options)
		}
		got = append(got, s.umem.frame(Desc{e.addr, e.length})...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, and others", len(got))
	}
	k.send(3)
	s.Flush()
	mustHaveAll(t, s)
	for s.tx.room(3) >= 3 && len(s.umem.free) >= 3 { // and then it stays the caller's
		if _, d, ok = s.AllocLarge(); !ok || !s.Send(d, 9018) {
			t.Fatal("there was room")
		}
	}
	if _, d, ok = s.AllocLarge(); !ok || s.Send(d, 9018) || s.LargeRoom() != chainFrames-1 {
		t.Error("a frame was sent without room, or its buffer is gone")
	}
}

// On a real link a frame of an MTU of 9000 comes whole and described, and leaves whole, in both modes of XDP.
func TestJumboFramesOnALink(t *testing.T) {
	netnstest.Need(t, multiBuffer)
	if netnstest.Wired() {
		t.Skip("allowed: the NIC of a wire has XDP for frames in one piece only (igb): a veth has both")
	}
	modes(t, func(t *testing.T, native bool) {
		r := newRig(t, 1, native, netnstest.Options{MTU: 9000})
		s := r.socks[0]
		fill(s)
		in := r.net.A.Injector(t)
		sent := map[string]bool{}
		for i, n := range []int{1000, 8946, 3786, 3787, 7000, 8946} {
			f := segment(i, n)
			sent[string(f)] = true
			if err := in.Send(f); err != nil {
				t.Fatal(err)
			}
		}
		r.receive(t, len(sent), func(s *Socket, d Desc) {
			f := frameOf(s, d)
			if !sent[string(f)] {
				t.Errorf("a frame of %d bytes that was not sent, or twice", len(f))
			}
			delete(sent, string(f))
			var m meta.Meta
			if !meta.Parse(metaOf(s, d), len(f), &m) || m.Port != vmPort || int(m.PayloadLen) != len(f)-54 {
				t.Errorf("frame of %d bytes: metadata %+v", len(f), m)
			}
		})
		if len(sent) > 0 || s.Lost() != (Lost{}) {
			t.Errorf("%d frames did not come; %+v, %+v", len(sent), s.Lost(), stats(t, s))
		}
		mustConserve(t, s, 2048)
		capture := r.net.A.Capture(t)
		buf, d, _ := s.AllocLarge()
		f := segment(3, 8946)
		copy(f, peerMAC[:])
		if !s.Send(d, copy(buf, f)) {
			t.Fatal("no room")
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, g := range capture.Drain(300 * 1e6) {
			if bytes.Equal(g.Data, f) {
				return
			}
		}
		t.Errorf("the frame did not leave; %d pending, %+v", s.TxPending(), stats(t, s))
	})
}

// To join a frame and to send one allocates nothing.
func TestJumboFramesAllocateNothing(t *testing.T) {
	s, k := jumboSocket(t)
	var d [4]Desc
	lengths := []int{LargeChunk - Headroom, LargeChunk - Headroom, 1000}
	var addrs [3]uint64
	if n := testing.AllocsPerRun(100, func() {
		s.Refill()
		consume(&k.fill, addrs[:])
		for i, a := range addrs {
			k.rx.put(Desc{a + Headroom, uint32(lengths[i])})
			if i < len(addrs)-1 {
				k.rx.entries[(k.rx.cachedP-1)&k.rx.mask].options = unix.XDP_PKT_CONTD
			}
		}
		k.rx.publish()
		if s.Recv(d[:]) != 1 || !s.Send(d[0], int(d[0].Len)) {
			t.Fatal("the frame did not come, or was not taken")
		}
		s.Publish()
		for at := k.tx.ready(3); at > 0; at-- {
			k.comp.entries[k.comp.cachedP&k.comp.mask] = k.tx.entries[k.tx.cachedC&k.tx.mask].addr
			k.tx.cachedC++
			k.comp.cachedP++
		}
		k.tx.release()
		k.comp.publish()
		s.Flush()
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
	mustHaveAll(t, s)
}
