//go:build !race

package datapath

import (
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// simGuest takes packets as its VM's kind does.
type simGuest struct {
	vm     *simVM
	stuck  bool          // it has no buffers
	pieces int           // of the buffers that a frame takes
	cut    bool          // its buffers take no superframe
	ring   bool          // chunks are its until they are given back
	gives  time.Duration // and that is so long after; negative: never

	got     int // packets
	from    *simStream
	room    int
	walked  int
	puts    int
	burst   []uint64
	held    []simSent
	done    []int64 // when the copies in the ring will have been taken
	packets int
}

// simSource has always a frame more: hdr and data, in a chain of pieces.
type simSource struct {
	vm     *simVM
	hdr    virtio.NetHdr
	data   []byte
	buf    []byte
	pieces int
	stop   bool
	polls  int
	arms   int
	taken  int
}

func (g *simGuest) Begin(room int) bool {
	g.vm.s.nic.spend(costLook)
	g.room, g.puts, g.packets, g.burst = room, 0, 0, g.burst[:0]
	g.Reap()
	return true
}

func (g *simGuest) Put(f *Frame) error {
	if g.stuck {
		return ErrFull // without a look: there is no news
	}
	if g.ring && len(f.Refs) > 0 && len(g.held)+len(g.burst)+len(f.Refs) > g.room { // as ringGuest does
		switch {
		case f.Hdr.GSOType != 0 && (len(f.Refs) > g.room || g.room < littleRoom):
			return ErrTooBig
		case f.Hdr.GSOType != 0 || g.copies() == simSlots:
			return ErrFull
		}
		g.vm.s.nic.spend(f.Len / costBytes)
		g.done = append(g.done, g.vm.s.now+int64(g.gives))
		for _, ref := range f.Refs {
			g.vm.s.nic.Free(ref)
		}
		g.puts++
		g.packets++
		return nil
	}
	if g.ring && len(f.Refs) == 0 { // a piece
		if g.copies() == simSlots {
			return ErrFull
		}
		g.done = append(g.done, g.vm.s.now+int64(g.gives))
	}
	g.walked += g.pieces
	g.vm.s.nic.spend(g.pieces * costPiece)
	if g.cut && f.Hdr.GSOType != 0 {
		return ErrTooBig
	}
	g.puts++
	g.packets += max(1, len(f.Refs))
	g.burst = append(g.burst, f.Refs...)
	return nil
}

// copies is how many of the ring's slots hold a copy.
func (g *simGuest) copies() int {
	for g.gives >= 0 && len(g.done) > 0 && g.done[0] <= g.vm.s.now {
		g.done = g.done[1:]
	}
	return len(g.done)
}

func (g *simGuest) Commit() (int, error) {
	n := g.vm.s.nic
	for _, ref := range g.burst {
		if g.ring {
			g.held = append(g.held, simSent{ref, n.s.now + int64(g.gives)})
		} else {
			n.Free(ref)
		}
	}
	g.got += g.packets
	if st := g.from; st != nil && st.timed {
		for _, at := range st.came[:g.packets] {
			st.longest = max(st.longest, n.s.now-at)
		}
		st.came = st.came[g.packets:]
	}
	return g.puts, nil
}

func (g *simGuest) Walked() int {
	n := g.walked
	g.walked = 0
	return n
}

func (g *simGuest) Reap() int {
	for g.gives >= 0 && len(g.held) > 0 && g.held[0].at <= g.vm.s.now {
		g.vm.s.nic.Free(g.held[0].addr)
		g.held = g.held[1:]
	}
	return len(g.held)
}

func (g *simGuest) Close() (int, error) {
	for _, h := range g.held {
		g.vm.s.nic.Free(h.addr)
	}
	g.held = nil
	return 0, nil
}

func (g *simGuest) Arm(bool) (int, bool) { return -1, false }
func (g *simGuest) Ack()                 {}
func (g *simGuest) MaxFrame() int        { return 0 }
func (g *simGuest) Check(bool) error     { return nil }

// Poll keeps the bounds of vhost.TxQueue.Poll.
func (s *simSource) Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() int) (n, walked int, err error) {
	s.polls++
	s.vm.s.nic.spend(costLook)
	if s.stop {
		return 0, 0, nil
	}
	if s.buf == nil {
		s.buf = make([]byte, len(s.data))
	}
	f := vhost.TxFrame{Hdr: s.hdr, Data: s.buf}
	for bytes := 0; n < budget && bytes < 512<<10 && walked < 2048; bytes += len(s.data) {
		copy(s.buf, s.data)
		walked += s.pieces
		s.vm.s.nic.spend(s.pieces*costPiece + len(s.data)/costBytes)
		next := fn(&f)
		if next == vhost.Leave {
			break
		}
		if n++; next == vhost.TakeLast {
			break
		}
	}
	s.taken += n
	return n, walked, nil
}

func (s *simSource) ArmKick() bool {
	s.arms++
	return !s.stop
}

func (s *simSource) DisarmKick() {}
func (s *simSource) KickFD() int { return -1 }
func (s *simSource) AckKick()    {}
