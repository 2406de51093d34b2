package xsk

import (
	"bytes"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
)

// What tests on NICs in zero-copy (netnstest.WireEnv) need beside those on veth.

// fill is Refill of a socket that was just opened: a driver in zero-copy has looked for chunks before, and sleeps. The NIC drops what comes
// until it has the first ones, and nothing tells when that is: the kernel writes the fill ring's consumer index at its next look.
func fill(s *Socket) {
	s.Refill()
	for i := 0; s.ZeroCopy() && i < 40; i++ {
		_ = s.wakeRx()
		time.Sleep(5 * time.Millisecond)
	}
}

// mustHaveLostNothing looks at the kernel's counts.
func mustHaveLostNothing(t *testing.T, s *Socket) {
	t.Helper()
	st := stats(t, s)
	if s.ZeroCopy() {
		st.FillEmpty = 0 // the driver looks for chunks ahead of the frames: no frame was lost by that
	}
	if st.RxDropped|st.RxInvalid|st.TxInvalid|st.RxRingFull|st.FillEmpty != 0 {
		t.Errorf("statistics %+v", st)
	}
}

// mustBringAFrameEach uses up the chunks that the kernel has to receive into: each brings one frame, and no other one does. One is
// left over: igb, when its ring is quite empty, goes on with what it has delivered before (igb_alloc_rx_buffers_zc leaves an old length
// behind the last descriptor where the fill ring ran dry at the ring's end).
func (r *rig) mustBringAFrameEach(t *testing.T, s *Socket) {
	t.Helper()
	in := r.net.A.Injector(t)
	lent := map[uint64]bool{}
	for i, word := range s.umem.owner {
		if word&^indexBits == inFill {
			lent[uint64(i)] = true
		}
	}
	frames := len(lent) - 1
	var d [killBurst]Desc
	for got, sent := 0, 0; got < frames; {
		for ; sent < min(got+killBurst, frames); sent++ {
			if err := in.Send(numbered(uint64(sent), killShort, vmMAC)); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		if !wait(func() bool { _ = s.wakeRx(); n = s.Recv(d[:]); return n > 0 }) {
			t.Fatalf("%d of %d chunks brought a frame: %+v", got, frames, stats(t, s))
		}
		for _, d := range d[:n] {
			i := d.Addr >> s.umem.shift
			if !lent[i] {
				t.Errorf("chunk %d brought a frame, and was not the kernel's", i)
			}
			delete(lent, i)
			if f, _ := s.Received(d); numberOf(f, killShort, vmMAC) != uint64(got) {
				t.Errorf("frame %d is another", got)
			}
			got++
		}
	}
	if s.ZeroCopy() {
		t.Logf("zero-copy: %d chunks brought a frame each", frames)
	}
}

// What a dry fill ring stops. In copy mode that is what would go to the socket; a driver in zero-copy has nothing left to receive into, so
// XDP does not run and the host's frames wait as well, until there are chunks again.
func TestADryFillRingStopsTheHostInZeroCopyAlone(t *testing.T) {
	modes(t, func(t *testing.T, native bool) {
		r := newRig(t, 1, native, netnstest.Options{})
		s, capture := r.socks[0], r.net.B.Capture(t)
		host := func(i int) []byte {
			f := segment(i, 100)
			copy(f, r.net.B.MAC)
			return f
		}
		seen := func() uint64 {
			v, err := r.prog.Outcomes()
			if err != nil {
				t.Fatal(err)
			}
			n := uint64(0)
			for _, v := range v {
				n += v
			}
			return n
		}
		for i := range 4 {
			r.net.A.Inject(t, host(i))
		}
		if s.ZeroCopy() {
			if f, ok := capture.Poll(500 * time.Millisecond); ok || seen() != 0 {
				t.Errorf("XDP saw %d frames; the host has one: %t %x", seen(), ok, f.Data)
			}
			t.Logf("zero-copy: XDP saw no frame while the fill ring was dry: %+v", stats(t, s))
		} else {
			for i := range 4 {
				capture.Until(2*time.Second, func(f netnstest.Frame) bool { return bytes.Equal(f.Data, host(i)) })
			}
		}
		fill(s)
		r.net.A.Inject(t, host(4))
		capture.Until(2*time.Second, func(f netnstest.Frame) bool { return bytes.Equal(f.Data, host(4)) })
		if seen() == 0 {
			t.Error("the program saw nothing")
		}
	})
}
