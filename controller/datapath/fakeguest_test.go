package datapath

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// received is what a guest got: a header and the bytes behind it, as one.
type received struct {
	hdr   virtio.NetHdr
	data  []byte
	refs  []uint64 // nil for a piece
	frags [][]byte // where the bytes lay, while the guest has the chunks
}

// fakeGuest is a Guest that behaves as it is told. It holds the worker to the contract of Guest.
type fakeGuest struct {
	keepRoom int // what the last Begin said
	pieces   int // that each Put makes the worker walk
	walked   int

	tb  testing.TB
	nic *fakeNIC

	stopped   bool                        // Begin is false
	room      int                         // frames until ErrFull; negative: no end
	longest   int                         // a superframe that is longer is ErrTooBig; 0: no limit
	longLone  int                         // any frame that is longer is ErrTooBig; 0: no limit
	noOffer   func(h *virtio.NetHdr) bool // the header needs what was not negotiated
	refuse    func(f *Frame) bool         // ErrRefused
	burst     int                         // Puts of a burst, 0: no limit
	most      int                         // frames that a Commit counts, negative: all
	shortErr  error                       // what Commit says of the frame behind them
	linkDown  bool
	broken    error // the guest is finished, says Put
	brokeLate error // the guest is finished, says Commit
	keeps     bool  // chunks stay until Reap, as in a ring
	keepMost  int   // chunks that Reap leaves
	maxFrame  int
	checkErr  error
	closeErr  error
	unsent    int
	fd        int  // Arm's
	ready     bool // Arm's
	boom      string

	got       []received
	burstPuts []received
	open      bool
	closed    int
	begins    int
	commits   int
	acks      int
	arms      []bool // hungry, of each Arm
	refreshed []bool
	held      []uint64
	lent      []received // delivered, and their chunks are still held
}

func (r *rig) newGuest() *fakeGuest {
	return &fakeGuest{tb: r.tb, nic: r.nic, room: -1, most: -1, fd: -1, shortErr: ErrFull}
}

func (g *fakeGuest) call(name string, open bool) {
	if g.closed > 0 {
		g.tb.Errorf("%s of a guest that was closed", name)
	}
	if g.open != open {
		g.tb.Errorf("%s while a burst is open: %v", name, g.open)
	}
	if g.boom == name {
		panic("boom in " + name)
	}
}

func (g *fakeGuest) Begin(room int) bool {
	g.keepRoom = room
	g.call("Begin", false)
	g.begins++
	if g.stopped {
		return false
	}
	g.open, g.burstPuts = true, g.burstPuts[:0]
	return true
}

func (g *fakeGuest) Walked() int {
	g.call("Walked", true)
	n := g.walked
	g.walked = 0
	return n
}

func (g *fakeGuest) Put(f *Frame) error {
	g.call("Put", true)
	g.walked += g.pieces
	n := 0
	for _, b := range f.Frags {
		n += len(b)
	}
	if n != f.Len {
		g.tb.Errorf("a frame of %d bytes says %d", n, f.Len)
	}
	if f.Hdr.GSOType != 0 && f.Hdr.Flags&virtio.HdrNeedsCsum == 0 { // virtio 1.2, 5.1.6.4.1
		g.tb.Errorf("a superframe without NEEDS_CSUM: %+v", f.Hdr)
	}
	switch {
	case g.broken != nil:
		return g.broken
	case g.burst > 0 && len(g.burstPuts) == g.burst:
		return ErrBurst
	case g.linkDown:
		return ErrLinkDown
	case g.refuse != nil && g.refuse(f):
		return ErrRefused
	case g.noOffer != nil && g.noOffer(&f.Hdr):
		return ErrNoOffer
	case g.longest > 0 && f.Hdr.GSOType != 0 && f.Len > g.longest, g.longLone > 0 && f.Len > g.longLone:
		return ErrTooBig
	case g.room >= 0 && len(g.burstPuts) >= g.room:
		return ErrFull
	}
	r := received{hdr: f.Hdr}
	if len(f.Refs) == 0 { // valid during Put only
		r.data = bytes.Join(f.Frags, nil)
	} else {
		r.refs, r.frags = slices.Clone(f.Refs), slices.Clone(f.Frags)
	}
	g.burstPuts = append(g.burstPuts, r)
	return nil
}

func (g *fakeGuest) Commit() (int, error) {
	g.call("Commit", true)
	g.open = false
	g.commits++
	n, err := len(g.burstPuts), g.brokeLate
	if g.most >= 0 && n > g.most {
		n, err = g.most, g.shortErr
	}
	for _, r := range g.burstPuts[:n] {
		if r.refs != nil {
			r.data = bytes.Join(r.frags, nil)
		}
		g.got = append(g.got, r)
		if g.keeps && r.refs != nil {
			g.held = append(g.held, r.refs...)
			g.lent = append(g.lent, r)
			continue
		}
		for _, ref := range r.refs {
			g.nic.Free(ref)
		}
	}
	if g.room >= 0 {
		g.room -= n
	}
	return n, err
}

// giveBack gives chunks of delivered frames back until most are left, in the order they came.
func (g *fakeGuest) giveBack(most int) {
	for len(g.lent) > 0 && len(g.held) > most {
		r := g.lent[0]
		if !bytes.Equal(bytes.Join(r.frags, nil), r.data) {
			g.tb.Error("a frame changed while the guest had its chunks")
		}
		for _, ref := range r.refs {
			g.nic.Free(ref)
		}
		g.held, g.lent = g.held[len(r.refs):], g.lent[1:]
	}
}

func (g *fakeGuest) Reap() int {
	g.call("Reap", false)
	g.giveBack(g.keepMost)
	return len(g.held)
}

func (g *fakeGuest) Arm(hungry bool) (int, bool) {
	g.call("Arm", false)
	g.arms = append(g.arms, hungry)
	return g.fd, g.ready
}

func (g *fakeGuest) Ack() {
	g.call("Ack", false)
	g.acks++
	if g.fd >= 0 {
		var b [8]byte
		_, _ = unix.Read(g.fd, b[:])
	}
}

func (g *fakeGuest) MaxFrame() int { return g.maxFrame }

func (g *fakeGuest) Check(refresh bool) error {
	g.call("Check", false)
	g.refreshed = append(g.refreshed, refresh)
	return g.checkErr
}

func (g *fakeGuest) Close() (int, error) {
	g.open = false // a burst that a panic ended
	g.call("Close", false)
	g.closed++
	g.giveBack(0)
	return g.unsent, g.closeErr
}

// take returns what the guest got, and forgets it.
func (g *fakeGuest) take() []received {
	got := g.got
	g.got = nil
	return got
}

// fakeSource is a TX virtqueue: frames in the order they were queued.
type fakeSource struct {
	queue  []vhost.TxFrame
	err    error
	budget int // of the last Poll
	pieces int // of each chain
	armed  bool
	more   bool // ArmKick's
	fd     int
	acks   int
	arms   int
	used   func()              // the frames of a Poll are completed
	head   int                 // bytes of a frame that are private, 0: all
	race   func(rest [][]byte) // the guest, while its frame is on its way
}

func (s *fakeSource) send(h virtio.NetHdr, frames ...[]byte) {
	for _, f := range frames {
		s.queue = append(s.queue, vhost.TxFrame{Hdr: h, Data: f})
	}
}

func (s *fakeSource) Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() int) (n, walked int, err error) {
	s.budget = budget
	for next := vhost.TakeOn; n < budget && n < len(s.queue) && next == vhost.TakeOn; {
		f := vhost.TxFrame{Hdr: s.queue[n].Hdr, Data: slices.Clone(s.queue[n].Data)} // the worker may write to it
		if s.head > 0 && len(f.Data) > s.head {
			f.Data, f.Rest = f.Data[:s.head:s.head], [][]byte{f.Data[s.head:]}
		}
		walked += s.pieces
		private := f.Data
		if next = fn(&f); next == vhost.Leave {
			break
		}
		for i := range private { // it is the queue's again
			private[i] = poison
		}
		if s.race != nil {
			s.race(f.Rest)
		}
		n++
	}
	if n > 0 {
		n -= before()
		s.queue = s.queue[n:]
		if s.used != nil {
			s.used()
		}
	}
	return n, walked, s.err
}

func (s *fakeSource) ArmKick() bool {
	s.armed = true
	s.arms++
	return s.more || len(s.queue) > 0
}

func (s *fakeSource) DisarmKick() { s.armed = false }
func (s *fakeSource) KickFD() int { return s.fd }
func (s *fakeSource) AckKick()    { s.acks++ }

// fakeMulticast is a socket of group frames.
type fakeMulticast struct {
	queue     []groupFrame
	fd        int
	slow, odd uint64
}

type groupFrame struct {
	frame  []byte
	tci    uint16
	tagged bool
}

var errEmpty = errors.New("fake multicast: no frame")

func (m *fakeMulticast) Recv(buf []byte) ([]byte, uint16, bool, error) {
	if len(m.queue) == 0 {
		return nil, 0, false, errEmpty
	}
	f := m.queue[0]
	if m.fd >= 0 && len(m.queue) == 1 {
		var b [8]byte
		_, _ = unix.Read(m.fd, b[:])
	}
	m.queue = m.queue[1:]
	return buf[:copy(buf, f.frame)], f.tci, f.tagged, nil
}

func (m *fakeMulticast) FD() int                   { return m.fd }
func (m *fakeMulticast) Dropped() (uint64, uint64) { return m.slow, m.odd }

// summingGuest is a fakeGuest that copies in Put, as a virtqueue does, and verifies what it copies.
type summingGuest struct{ *fakeGuest }

func (g summingGuest) Sums() {}

func (g summingGuest) Put(f *Frame) error {
	err := g.fakeGuest.Put(f)
	if err != nil {
		return err
	}
	r := &g.burstPuts[len(g.burstPuts)-1]
	if len(f.Sums) > 0 && len(f.Sums) != len(f.Frags)-1 {
		g.tb.Errorf("%d sums of %d fragments", len(f.Sums), len(f.Frags))
	}
	for i, sum := range f.Sums {
		if sum != 0 && checksum.Sum(f.Frags[i+1], uint32(sum)) != 0xffff {
			g.burstPuts = g.burstPuts[:len(g.burstPuts)-1]
			return ErrDamaged
		}
	}
	if r.refs != nil {
		r.frags = [][]byte{bytes.Join(r.frags, nil)}
	}
	return nil
}

// fakeOf is the fake behind a guest, nil where there is none.
func fakeOf(g Guest) *fakeGuest {
	switch g := g.(type) {
	case *fakeGuest:
		return g
	case summingGuest:
		return g.fakeGuest
	}
	return nil
}
