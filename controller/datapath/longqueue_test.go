//go:build !race

package datapath

import (
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// A guest that gets its packets one by one and takes none for a while loses none of what its share of the chunks has room for, and they come in
// order; the ring that they waited in is then the next guest's.
func TestPacketsOfASlowGuestWaitAsFarAsItsShareGoes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = simChunks })
	fill := func(index uint32, n int) {
		p := to(index, 100)
		p.Flags = pt.ACK | pt.PSH
		for left := n; left > 0; left -= BurstFrames {
			r.inject(train(p, min(left, BurstFrames))...)
			r.step()
		}
	}
	for index := range uint32(3) {
		g := r.vm(index)
		g.room = 0
		fill(index, 2000)
		r.dropped(index, nil)
		fill(index, 100)
		r.dropped(index, byReason{flowtable.ReasonGuestNoBuffers: 52})
		g.room = -1
		r.step()
		if len(g.got) != simChunks/4 {
			t.Errorf("guest %d got %d packets", index, len(g.got))
		}
		if n := len(r.w.longRings); n != 1 {
			t.Errorf("%d long rings", n)
		}
	}
	// Two at a time have half each.
	a, b := r.vm(5), r.vm(6)
	a.room, b.room = 0, 0
	fill(5, 900)
	fill(6, 900)
	r.dropped(5, nil)
	r.dropped(6, nil)
	fill(6, 200)
	if n := r.w.ports[6].out.n; n != 1024 || r.ledger(5).Dropped[flowtable.ReasonGuestNoBuffers] != 0 {
		t.Errorf("%d wait for one, and the other lost %d", n, r.ledger(5).Dropped[flowtable.ReasonGuestNoBuffers])
	}
	a.room, b.room = -1, -1
	r.step()
	if len(r.w.longRings) != 2 || len(a.got) != 900 || len(b.got) != 1024 {
		t.Errorf("%d long rings; %d and %d packets", len(r.w.longRings), len(a.got), len(b.got))
	}
}

// Guests that are slow beside a neighbour that is not cost it nothing, whoever has a long ring.
func TestSlowGuestsWithLongQueuesCostTheOthersNothing(t *testing.T) {
	s := newSim(t)
	honest := s.vm()
	honest.receives(50_000, honest.datagram())
	for range 3 {
		v := s.vm(stuck)
		v.receives(30_000, v.datagram())
	}
	s.run(200 * time.Millisecond)
	s.measure(200 * time.Millisecond)
	s.waitsWithinBound()
	if honest.lost != 0 || honest.guest.got < honest.came-BurstFrames {
		t.Errorf("of %d frames %d were lost, and %d arrived", honest.came, honest.lost, honest.guest.got)
	}
	out := len(s.w.longRings)
	for _, p := range s.w.list {
		if p.out.short != nil {
			out++
		}
	}
	if out > 4 {
		t.Errorf("%d long rings", out)
	}
}
