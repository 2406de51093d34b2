package datapath

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// fakeSender takes as many frames as it has room for, and refuses those that are longer than its MTU.
type fakeSender struct {
	room, mtu, grows int
	down             bool
	got              [][]byte
}

func (s *fakeSender) Send(frames []*virtio.Frame) (n int, err error) {
	for _, f := range frames {
		switch {
		case s.down:
			return n, tap.ErrDown
		case f.Len > s.mtu:
			return n, tap.ErrMTU
		case s.room == 0:
			return n, tap.ErrFull
		}
		s.room--
		s.got = append(s.got, bytes.Join(f.Frags, nil))
		n++
	}
	return n, nil
}

func (s *fakeSender) Refresh() error {
	s.mtu += s.grows
	return nil
}

// Frames leave by the socket in their order; what it has no room for waits, what it refuses is given up, and each chunk comes back once.
func TestFramesLeaveABondByItsSocket(t *testing.T) {
	nic, out := newFakeNIC(t, 64), &fakeSender{room: 2, mtu: 1514}
	s := NewSocketNIC(nic, out)
	send := func(tag byte, n int) {
		t.Helper()
		buf, d, ok := s.AllocTx()
		if !ok {
			t.Fatal("no chunk")
		}
		for i := range buf[:n] {
			buf[i] = tag
		}
		if !s.Send(d, n) {
			t.Fatal("not taken")
		}
	}
	gone := func(tags string, pending int) {
		t.Helper()
		for i, f := range out.got {
			if i < len(tags) && (f[0] != tags[i] || f[len(f)-1] != tags[i]) {
				t.Errorf("frame %d is %q, want %q", i, f[0], tags[i])
			}
		}
		if len(out.got) != len(tags) || s.TxPending() != pending || nic.with(inWorker) != pending || len(nic.sent()) != 0 {
			t.Errorf("%d frames of %d, %d pending of %d, %d chunks out", len(out.got), len(tags), s.TxPending(), pending, nic.with(inWorker))
		}
		out.got = nil
	}
	for i, n := range []int{60, 1514, 100, 1600, 70} {
		send("abcde"[i], n)
	}
	s.Publish()
	gone("ab", 3)
	if err := s.Flush(); err != nil {
		t.Errorf("no room is no error: %v", err)
	}
	out.room = 10
	if err := s.Flush(); err != nil {
		t.Error(err)
	}
	gone("ce", 0) // d is too long for good
	out.grows = 100
	send('f', 1600)
	s.Publish()
	gone("f", 0) // the MTU had grown
	send('g', 60)
	out.down = true
	if err := s.Flush(); !errors.Is(err, tap.ErrDown) {
		t.Errorf("a link that is down: %v", err)
	}
	gone("", 1)
	out.down = false
	s.Publish()
	gone("g", 0)
	out.room = 0
	for s.TxRoom() > 0 {
		send('x', 60)
	}
	if n := s.TxPending(); n == 0 || n > socketRoom {
		t.Errorf("%d frames wait", n)
	}
}
