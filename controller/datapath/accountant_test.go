//go:build !race

package datapath

import (
	"testing"
	"time"
)

// A debt is paid or forgiven, a frame that finds no room gives way or is waited for, and then the worker sleeps.
func TestAWorkerWithNothingToDoStops(t *testing.T) {
	s := newSim(t)
	for range 8 {
		s.vm(cruel(2), chopped).receives(100_000, s.vms[len(s.vms)-1].trainOf(45)...)
		s.vm(longChains(2), stuck)
	}
	s.run(20 * time.Millisecond)
	s.nic.streams = nil
	for _, v := range s.vms {
		v.stopSending()
	}
	steps := 0
	for ; s.w.step(); steps++ {
		s.now += costTurn
		if steps > 20_000 { // what waits for the slowest: a frame of 45 packets takes 90 turns, and it has the queue full of them
			t.Fatal("the worker still asks for another turn")
		}
	}
	t.Logf("it stopped after %d turns", steps)
	for range 100 {
		if s.now += int64(time.Millisecond); s.w.step() {
			t.Fatal("a step did nothing and asks for another")
		}
	}
}

// A VM that goes while its frame waits for room takes the wait with it.
func TestAVMThatGoesWhileItWaitsForRoomStopsNobody(t *testing.T) {
	for name, goes := range map[string]func(w *Worker, index uint32){
		"removed": (*Worker).removePort, "stopped": (*Worker).stopPort, "paused": (*Worker).pausePort,
	} {
		s := newSim(t, func(n *simNIC) { n.perFrame = int64(time.Hour) })
		bad := s.vm(cruel(8))
		for s.w.step() {
		}
		if s.w.txNeed != maxTxPackets {
			t.Fatalf("%s: nothing waits for room", name)
		}
		good := s.vm(small(1))
		last := s.vm(small(1))
		s.nic.tx = s.nic.tx[:len(s.nic.tx)-200] // room, but not for the frame that waits
		if s.w.step(); good.sent != 0 {
			t.Fatalf("%s: a small frame went before one that waits for room", name)
		}
		goes(s.w, bad.index)
		s.w.step()
		if good.sent == 0 || last.sent == 0 {
			t.Errorf("%s: %d and %d packets of the others", name, good.sent, last.sent)
		}
	}
}

// A frame that waits for chunks, which only guests can give back, is not waited for by the others, and is not tried without a pause.
func TestAFrameThatFindsNoChunksStopsNobody(t *testing.T) {
	s := newSim(t)
	bad, good := s.vm(cruel(1)), s.vm(small(1))
	s.nic.free = s.nic.free[:s.nic.fill+100]
	for range 10 {
		s.w.step()
	}
	if bad.sent != 0 || good.sent == 0 {
		t.Errorf("%d packets of the one, %d of the other", bad.sent, good.sent)
	}
	good.stopSending()
	polls := bad.sources[0].polls
	if s.w.step() || bad.sources[0].polls != polls+1 {
		t.Error("a turn that could not send asks for another")
	}
	if d := s.w.timeout(); d != txRetry {
		t.Errorf("it is tried again after %v", d)
	}
	good.sources[0].stop = false
	if s.w.wait(); bad.sources[0].arms != 0 || good.sources[0].arms != 1 {
		t.Errorf("asked for %d and %d kicks: more frames are no news for one that waits", bad.sources[0].arms, good.sources[0].arms)
	}
	good.stopSending()
	for i := range uint64(400) { // guests give chunks back
		s.nic.Free((7000 + i) * fakeChunk)
	}
	if s.w.step(); bad.sent == 0 || s.w.txShort || s.w.egress[0].short {
		t.Errorf("%d packets when there are chunks again; waits %v, kicks left out %v", bad.sent, s.w.txShort, s.w.egress[0].short)
	}
}

// A place in the round survives what happens to others.
func TestTheRoundGoesOnWhenVMsComeAndGo(t *testing.T) {
	ports := make([]port, 4)
	var r round
	for i := range ports {
		r.add(&ports[i])
	}
	turn := func(want int) {
		t.Helper()
		if len(r.vms) == 0 || r.vms[r.at] != &ports[want] {
			t.Fatalf("the turn is not VM %d's", want)
		}
	}
	r.next()
	r.next()
	turn(2)
	r.enter(&ports[2])
	ports[2].credit.tx -= 10
	r.enter(&ports[2]) // the next turn goes on here
	if ports[2].credit.tx != txShare-10 {
		t.Errorf("credit %d", ports[2].credit.tx)
	}
	r.remove(&ports[0])
	turn(2)
	if !r.paid {
		t.Error("a VM lost its place because another left")
	}
	r.remove(&ports[2])
	turn(3)
	if r.paid {
		t.Error("the next VM got its predecessor's part")
	}
	r.remove(&ports[3])
	turn(1)
	r.remove(&ports[3]) // twice is harmless
	r.remove(&ports[1])
	if len(r.vms) != 0 || r.at != 0 {
		t.Errorf("%d VMs, at %d", len(r.vms), r.at)
	}
	// What is left of a part is lost, what is owed is not.
	p := &port{}
	p.credit.tx = txShare - 1
	r.enter(p)
	if p.credit.tx != txShare {
		t.Errorf("credit %d", p.credit.tx)
	}
	r.paid, p.credit.tx = false, -3*txShare
	r.enter(p)
	if p.credit.tx != -2*txShare {
		t.Errorf("credit %d", p.credit.tx)
	}
}

// What a VM sends in vain, it pays for: the copy of a large frame that is refused takes as long as many packets.
func TestRefusedFramesArePaidForByTheirVM(t *testing.T) {
	foreign := sends(8, 19, tsoHdr(1448), func(v *simVM) []byte { return from(v.index+100, wire, 45*1448).Frame() })
	s := newSim(t)
	v := s.vm(bulk(1))
	s.measure(200 * time.Millisecond)
	alone := v.sent
	s = newSim(t)
	s.vm(foreign)
	v = s.vm(bulk(1))
	s.measure(200 * time.Millisecond)
	atLeast(t, "packets beside refused frames", v.sent, alone/2, 90)
}

// What a guest's buffers cost beyond its part of a turn is paid in the turns that follow.
func TestADebtOfDescriptorsIsPaid(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.pieces = 5 * walkTurn
	want := train(alone(1, 100), 2)
	r.inject(want...)
	turns := 0
	for ; len(g.got) < 2 && turns < 100; turns++ {
		if !r.step() && len(g.got) < 2 {
			t.Fatalf("the worker sleeps after %d turns, and a guest's debt keeps a frame", turns)
		}
	}
	packets(t, g.got, want...)
	if turns != 6 {
		t.Errorf("the second frame came in turn %d, want the 6th", turns)
	}
}

// What one ring borrows is gone for the next at once, not only in the next turn.
func TestWhatARingBorrowsTheNextCannot(t *testing.T) {
	s := newSim(t)
	a, b := &port{}, &port{}
	s.w.countLent()
	own, lent := simChunks/16/ringHolders, simChunks/8
	if got := s.w.ringRoom(a); got != own+lent/2 {
		t.Errorf("room %d, want %d", got, own+lent/2)
	}
	s.w.keeps(a, own+lent/2)
	if got := s.w.ringRoom(b); got != own+lent/4 {
		t.Errorf("room %d beside one that borrows half, want %d", got, own+lent/4)
	}
	if got := s.w.ringRoom(a); got != own+lent/2 {
		t.Errorf("room %d, and it has that", got)
	}
	s.w.keeps(a, 0)
	if got := s.w.ringRoom(b); got != own+lent/2 {
		t.Errorf("room %d after all came back", got)
	}
}

// A superframe that is cut again is charged packet by packet, so that one with hundreds does not take a turn of its own.
func TestAPartOfATurnEndsAmongThePacketsOfASuperframe(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.longest, g.pieces = 500, walkTurn/4
	want := train(to(1, 100), 20)
	r.inject(want...)
	r.step()
	if len(g.got) != 3 { // and the superframe was looked at as a whole
		t.Errorf("%d packets in the first turn", len(g.got))
	}
	for last := len(g.got); len(g.got) < len(want); last = len(g.got) {
		if r.step(); len(g.got) > last+4 || len(g.got) == last {
			t.Fatalf("%d packets in a turn", len(g.got)-last)
		}
	}
	packets(t, g.got, want...)
}

// A guest without buffers is asked once a turn, however many bursts that has.
func TestAGuestWithoutBuffersIsAskedOnceATurn(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room = 0
	for range 4 {
		begins := g.begins
		for range rxBursts {
			r.inject(train(alone(1, 60), BurstFrames)...)
		}
		if r.step(); g.begins != begins+1 {
			t.Errorf("asked %d times in a turn", g.begins-begins)
		}
	}
}
