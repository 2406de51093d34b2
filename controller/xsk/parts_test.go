package xsk

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// dup returns descriptors of the same files, as a parcel carries them.
func (p Parts) dup(t testing.TB) Parts {
	t.Helper()
	for _, fd := range []*int{&p.Socket, &p.Umem, &p.Owners} {
		n, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		*fd = n
	}
	return p
}

var remap = netnstest.Kernel(6, 4) // it maps the rings of a bound socket

func TestAdoptGoesOnWhereTheOwnerStopped(t *testing.T) {
	netnstest.Need(t, remap)
	modes(t, func(t *testing.T, native bool) {
		r := newRig(t, 1, native, netnstest.Options{})
		old := r.socks[0]
		old.Refill()
		in, capture := r.net.A.Injector(t), r.net.A.Capture(t)
		const frames = 20
		for i := range frames {
			if err := in.Send(segment(i, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if !wait(func() bool { return old.rx.ready(frames) == frames }) {
			t.Fatalf("%d of %d frames arrived", old.rx.ready(frames), frames)
		}
		var d [frames / 2]Desc
		if n := old.Recv(d[:]); n != len(d) {
			t.Fatalf("took %d", n)
		}
		send := func(s *Socket, i int) {
			buf, d, ok := s.AllocTx()
			if !ok || !s.Send(d, copy(buf, segment(i, 200))) {
				t.Fatal("no room")
			}
		}
		send(old, 1)
		send(old, 2)
		old.Publish()
		send(old, 3) // never published
		s, err := Adopt(r.config(0, native), old.Parts().dup(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		old.Close()
		r.socks[0] = s
		if s.TxPending() != 2 {
			t.Errorf("%d frames pending, want 2", s.TxPending())
		}
		mustConserve(t, s, 512)
		next := frames / 2
		r.receive(t, frames/2, func(s *Socket, d Desc) {
			if !bytes.Equal(frameOf(s, d), segment(next, 100)) {
				t.Errorf("frame %d is another", next)
			}
			next++
		})
		if next != frames {
			t.Errorf("the heir stopped at frame %d of %d", next, frames)
		}
		if !wait(func() bool { return s.Flush() == nil && s.TxPending() == 0 }) {
			t.Errorf("%d frames were never sent", s.TxPending())
		}
		send(s, 4)
		if !wait(func() bool { return s.Flush() == nil && s.TxPending() == 0 }) {
			t.Error("the heir's own frame was never sent")
		}
		var got []int
		for _, f := range capture.Drain(300 * time.Millisecond) {
			for i := range 5 {
				if bytes.Equal(f.Data, segment(i, 200)) {
					got = append(got, i)
				}
			}
		}
		if len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 4 {
			t.Errorf("sent frames %v, want 1, 2 and 4", got)
		}
		mustConserve(t, s, 512)
		if st := stats(t, s); st.RxDropped|st.RxInvalid|st.TxInvalid|st.RxRingFull|st.FillEmpty != 0 {
			t.Errorf("statistics %+v", st)
		}
	})
}

// wait asks until it is so, for at most 2 s.
func wait(is func() bool) bool {
	for range 400 {
		if is() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}
