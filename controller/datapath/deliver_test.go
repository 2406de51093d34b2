package datapath

import (
	"errors"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

func TestATrainReachesTheGuestAsOneSuperframe(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	want := train(to(1, 1000), 5)
	r.inject(want...)
	if !r.step() {
		t.Error("a step that moved frames says there was nothing to do")
	}
	if len(g.got) != 1 || g.got[0].hdr.GSOSize != 1000 || g.got[0].hdr.GSOType != virtio.GSOTCPv4 ||
		g.got[0].hdr.Flags != virtio.HdrNeedsCsum || g.got[0].hdr.HdrLen != 66 || g.got[0].hdr.CsumStart != 34 || g.got[0].hdr.CsumOffset != 16 {
		t.Fatalf("%d frames, the first with %+v", len(g.got), g.got[0].hdr)
	}
	packets(t, g.got, want...)
	l := r.ledger(1)
	if l.Merged != 5 || l.Superframes != 1 || l.Frames != 1 || l.Sealed[flowtable.ReasonBurstEnd] != 1 || l.FrameBytes != uint64(66+5000) {
		t.Errorf("ledger: %+v", *l)
	}
	if r.step() {
		t.Error("a step without frames says that there was something to do")
	}
	if got := r.w.Activity(); got != 1 {
		t.Errorf("activity %d after one step that moved something", got)
	}
}

// A burst goes to one guest at a time, with one Begin and one Commit.
func TestABurstIsOneCommitPerGuest(t *testing.T) {
	r := newRig(t)
	a, b := r.vm(1), r.vm(2)
	for i := range 10 {
		r.inject(to(1+uint32(i%2), 100).With(func(p *pt.TCP) { p.SrcPort = 2000 + uint16(i) }).Frame())
	}
	r.step()
	for _, g := range []*fakeGuest{a, b} {
		if g.begins != 1 || g.commits != 1 || len(g.got) != 5 {
			t.Errorf("%d Begin, %d Commit, %d frames", g.begins, g.commits, len(g.got))
		}
	}
}

func TestWhatAHungryGuestHasNoRoomForWaitsAndArrivesInOrder(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room = 3
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH // every packet alone
	want := train(p, 20)
	r.inject(want[:10]...)
	r.step()
	if s := r.w.ports[1]; len(g.got) != 3 || !s.hungry || s.out.n != 7 {
		t.Fatalf("%d frames delivered, %d wait, hungry %v", len(g.got), s.out.n, s.hungry)
	}
	r.inject(want[10:]...)
	r.step()
	for len(g.got) < 20 {
		before := len(g.got)
		g.room = 4
		r.step()
		if len(g.got) == before {
			t.Fatal("a guest with room got nothing")
		}
	}
	packets(t, g.got, want...)
	if r.w.ports[1].hungry {
		t.Error("hungry, and nothing waits")
	}
	r.dropped(1, nil)
}

func TestTheNewestIsDroppedAndTheOldestKept(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room = 0
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, outQueueLen+100)
	for i := 0; i < len(want); i += BurstFrames {
		r.inject(want[i:min(i+BurstFrames, len(want))]...)
		begins := g.begins
		r.step()
		if n := g.begins - begins; n > 2 { // once for a burst, not for each frame that finds the queue full
			t.Errorf("the worker turned to a hungry guest %d times in a step", n)
		}
	}
	limit := r.w.waitLimit()
	if limit != 512 {
		t.Fatalf("limit %d", limit)
	}
	r.dropped(1, byReason{flowtable.ReasonGuestNoBuffers: 100})
	g.room = -1
	r.step()
	packets(t, g.got, want[:outQueueLen]...)
	if l := r.ledger(1); l.Passed[flowtable.ReasonPSH] != outQueueLen || l.Queued != 0 {
		t.Errorf("ledger: %+v", *l)
	}
}

// The chunks of all hungry guests together are a quarter of the UMEM, each guest's a fair share of it.
func TestHungryGuestsShareAQuarterOfTheUMEM(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 2400 })
	var guests []*fakeGuest
	for i := range uint32(6) {
		g := r.vm(i)
		g.room = 0
		guests = append(guests, g)
	}
	fill := func(index uint32, n int) {
		p := to(index, 100)
		p.Flags = pt.ACK | pt.PSH
		for left := n; left > 0; left -= BurstFrames {
			r.inject(train(p, min(left, BurstFrames))...)
			r.step()
		}
	}
	for _, c := range []struct{ hungry, each int }{{1, 600}, {2, 300}, {3, 200}, {4, 150}, {5, 120}, {6, 100}} {
		if c.hungry == 1 { // more than a queue's own places
			fill(0, 700)
		} else {
			fill(uint32(c.hungry-1), 400)
			r.step()
		}
		for i := range c.hungry {
			if n := r.w.ports[i].out.chunks; n != c.each {
				t.Errorf("%d hungry guests: %d chunks wait for guest %d, want %d", c.hungry, n, i, c.each)
			}
		}
	}
	guests[0].room = -1
	r.step()
	if len(guests[0].got) != 100 || r.hungry() != 5 {
		t.Errorf("%d frames for the guest that has room again, %d others are hungry", len(guests[0].got), r.hungry())
	}
}

// What waits for a hungry guest is bounded when it comes, not only when the guest is looked at.
func TestAFrameThatWouldPassTheLimitIsDroppedWhenItComes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 512 })
	g := r.vm(1)
	g.room = 0
	p := to(1, 100)
	for i := range 4 { // superframes of 40 chunks; three fit into 128
		p.SrcPort = 2000 + uint16(i)
		r.inject(train(p, 40)...)
		r.step()
	}
	if s := r.w.ports[1]; s.out.n != 3 || s.out.chunks != 120 {
		t.Fatalf("%d frames of %d chunks wait", s.out.n, s.out.chunks)
	}
	r.dropped(1, byReason{flowtable.ReasonGuestNoBuffers: 40})
	p.SrcPort = 3000
	r.inject(train(p, 9)...) // one too many, and does not stand in the way of the next
	p.SrcPort = 3001
	r.inject(train(p, 8)...) // fits exactly
	r.step()
	if s := r.w.ports[1]; s.out.chunks != 128 {
		t.Errorf("%d chunks wait, 128 may", s.out.chunks)
	}
	r.dropped(1, byReason{flowtable.ReasonGuestNoBuffers: 49})
}

// A frame that is larger than its guest's share of the chunks does not wait, or many guests without room could hold all of them.
// The guest is tried again with the next one.
func TestALoneFrameBeyondTheLimitIsDroppedAndTheNextIsTried(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 512 })
	for i := range uint32(8) { // shares of 16
		r.vm(i).room = 0
		if i > 0 {
			p := to(i, 100)
			p.Flags = pt.ACK | pt.PSH
			r.inject(p.Frame())
		}
	}
	r.step()
	p := to(0, 100)
	want := train(p, 40)
	r.inject(want...)
	r.advance(time.Millisecond)
	r.step()
	if s := r.w.ports[0]; s.out.n != 0 || s.hungry {
		t.Fatalf("%d frames of %d chunks wait, hungry: %v", s.out.n, s.out.chunks, s.hungry)
	}
	r.dropped(0, byReason{flowtable.ReasonGuestNoBuffers: 40})
	g := r.w.ports[0].guest.(*fakeGuest)
	g.room = -1
	p.Seq += 40 * 100
	next := train(p, 40)
	r.inject(next...)
	r.advance(time.Millisecond)
	r.step()
	r.step()
	packets(t, g.got, next...)
}

// A burst of more frames than the queue holds goes to a guest that has room, in the middle of the burst.
func TestAFullQueueInFrontOfAGuestWithRoomIsEmptiedAtOnce(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	p := to(1, 40)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, outQueueLen+10)
	for _, f := range want { // without a step between them
		r.inject(f)
		r.w.receive()
	}
	if len(g.got) != outQueueLen {
		t.Fatalf("%d frames delivered before the burst's end", len(g.got))
	}
	r.w.flush()
	r.check()
	packets(t, g.got, want...)
	r.dropped(1, nil)
}

func TestACommitThatTakesPartLeavesTheRestInOrder(t *testing.T) {
	for _, most := range []int{0, 1, 3} {
		r := newRig(t)
		g := r.vm(1)
		g.most = most
		p := to(1, 200)
		p.Flags = pt.ACK | pt.PSH
		want := train(p, 10)
		r.inject(want...)
		r.step()
		if len(g.got) != most || r.w.ports[1].out.n != 10-most || !r.w.ports[1].hungry {
			t.Fatalf("a Commit of %d: %d delivered, %d wait", most, len(g.got), r.w.ports[1].out.n)
		}
		if l := r.ledger(1); l.Frames != uint64(most) || l.Queued != uint64(10-most) {
			t.Errorf("ledger: %+v", *l)
		}
		g.most = -1
		r.step()
		packets(t, g.got, want...)
		r.dropped(1, nil)
	}
}

func TestAnEndedBurstIsFollowedByTheNext(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.burst = 4
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 10)
	r.inject(want...)
	r.step()
	packets(t, g.got, want...)
	if g.commits != 3 || r.w.ports[1].hungry {
		t.Errorf("%d Commits, hungry %v", g.commits, r.w.ports[1].hungry)
	}
}

// Commit knows better than Put why a burst ended where it did.
func TestWhatCommitSaysOfAFrameHoldsBeforeWhatPutSaid(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.burst, g.most, g.shortErr = 4, 2, ErrRefused // the third of four is bad, says the system call
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 4)
	r.inject(want...)
	r.step()
	packets(t, g.got, want[0], want[1], want[3])
	r.dropped(1, byReason{flowtable.ReasonBadLength: 1})
}

func TestABadFrameIsDroppedAndTheOthersPass(t *testing.T) {
	for name, c := range map[string]struct {
		set func(g *fakeGuest)
		why flowtable.Reason
	}{
		"refused":             {func(g *fakeGuest) { g.refuse = func(f *Frame) bool { return f.Len > 300 } }, flowtable.ReasonBadLength},
		"too big and alone":   {func(g *fakeGuest) { g.longLone = 300 }, flowtable.ReasonBadLength},
		"needs a feature":     {func(g *fakeGuest) { g.noOffer = func(h *virtio.NetHdr) bool { return h.Flags == 0 } }, flowtable.ReasonBadLength},
		"refused by a Commit": {func(g *fakeGuest) { g.most, g.shortErr = 2, ErrRefused }, flowtable.ReasonBadLength},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			g := r.vm(1)
			c.set(g)
			var want [][]byte
			for i := range 5 {
				p := to(1, 200)
				p.SrcPort = 2000 + uint16(i)
				p.Flags = pt.ACK | pt.PSH
				if i == 2 {
					p.Len, p.Partial = 500, true // no claim can be made of it
				}
				want = append(want, p.Frame())
			}
			r.inject(want...)
			if name == "refused by a Commit" {
				g.burst = 3
			}
			r.step()
			if name == "refused by a Commit" { // its third frame, each time
				r.dropped(1, byReason{c.why: 1})
				packets(t, g.got, want[0], want[1], want[3], want[4])
				return
			}
			packets(t, g.got, want[0], want[1], want[3], want[4])
			r.dropped(1, byReason{c.why: 1})
		})
	}
}

func TestFramesForALinkThatIsDownAreCountedAndTheGuestMayComeBack(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.linkDown = true
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 6)
	r.inject(want[:3]...)
	r.step()
	r.dropped(1, byReason{flowtable.ReasonPortDown: 3})
	g.linkDown = false
	r.inject(want[3:]...)
	r.step()
	packets(t, g.got, want[3:]...)
	if r.trouble.Load() != 0 || r.w.ports[1].err != nil {
		t.Errorf("a link that is down is no trouble: %d, %v", r.trouble.Load(), r.w.ports[1].err)
	}
}

func TestAGuestThatIsStoppedLosesItsFramesAsPortDown(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room = 1
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 4)
	r.inject(want...)
	r.step() // hungry now
	g.stopped = true
	r.step()
	r.dropped(1, byReason{flowtable.ReasonPortDown: 3})
	if r.w.ports[1].hungry || r.hungry() != 0 {
		t.Error("hungry, and nothing waits")
	}
	g.stopped, g.room = false, -1
	r.inject(want[0])
	r.step()
	packets(t, g.got, want[0], want[0])
}

var errFinished = errors.New("fake guest: finished")

func TestAFinishedGuestIsReportedOnceAndTheOthersGoOn(t *testing.T) {
	for _, late := range []bool{false, true} {
		r := newRig(t)
		a, b := r.vm(1), r.vm(2)
		delivered := 0
		if late { // Commit says so, and what it took is delivered
			a.brokeLate, a.shortErr, delivered = errFinished, errFinished, 2
			a.most = 2
		} else {
			a.broken = errFinished
		}
		p := to(1, 200)
		p.Flags = pt.ACK | pt.PSH
		q := to(2, 200)
		r.inject(train(p, 5)...)
		want := train(q, 5)
		r.inject(want...)
		r.step()
		packets(t, b.got, want...)
		r.dropped(1, byReason{flowtable.ReasonPortDown: uint64(5 - delivered)})
		if len(a.got) != delivered || r.trouble.Load() != 1 || !errors.Is(r.w.ports[1].err, errFinished) {
			t.Fatalf("late %v: %d delivered, %d times trouble, %v", late, len(a.got), r.trouble.Load(), r.w.ports[1].err)
		}
		begins := a.begins
		r.inject(train(p, 5)...)
		r.step()
		if r.trouble.Load() != 1 || a.begins != begins {
			t.Errorf("trouble %d times, Begin %d times more: the control side knows already", r.trouble.Load(), a.begins-begins)
		}
		r.dropped(1, byReason{flowtable.ReasonPortDown: uint64(10 - delivered)})
	}
}

// A ring keeps the chunks of what it delivers until its kernel thread has copied them.
func TestChunksStayTheGuestsUntilItGivesThemBack(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.keeps, g.keepMost = true, 1000
	want := train(to(1, 1000), 8)
	r.inject(want...)
	r.step()
	packets(t, g.got, want...)
	if s := r.w.ports[1]; s.held != 8 || !s.dirty {
		t.Fatalf("%d chunks with the guest, dirty %v", s.held, s.dirty)
	}
	before := r.nic.with(inWorker)
	g.keepMost = 0
	r.step() // nothing comes, and the chunks come back all the same
	if s := r.w.ports[1]; s.held != 0 || s.dirty || before-r.nic.with(inWorker) != 8 {
		t.Errorf("%d chunks with the guest, %d came back, dirty %v", s.held, before-r.nic.with(inWorker), s.dirty)
	}
}

// The guest's limit reaches the table: what would have to be cut again is not made.
func TestTheTableLearnsHowLongASuperframeMayBe(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.maxFrame = 66 + 3000
	r.inject(train(to(1, 1000), 1)...)
	r.step()
	want := train(to(1, 1000), 6)
	g.take()
	r.inject(want...)
	r.step()
	packets(t, g.got, want...)
	if len(g.got) != 2 || r.ledger(1).Sealed[flowtable.ReasonMaxBytes] != 1 {
		t.Errorf("%d frames", len(g.got))
	}
}

// A frame is kept as the table gave it out: its pieces of memory, its header, its entry.
func TestAQueuedFrameIsTheOneThatCame(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room = 0
	var want [][]byte
	for i := range 7 {
		p := to(1, 300+i)
		p.SrcPort = 4000 + uint16(i)
		want = append(want, train(p, 1+i)...)
	}
	r.inject(want...)
	r.step()
	if r.w.ports[1].out.n != 7 {
		t.Fatalf("%d frames wait", r.w.ports[1].out.n)
	}
	g.room = -1
	r.step()
	packets(t, g.got, want...)
	for i, f := range g.got {
		if i > 0 && f.hdr.GSOSize != uint16(300+i) {
			t.Errorf("frame %d has gso_size %d", i, f.hdr.GSOSize)
		}
	}
	// Again, through the same places of the queue, now with shorter frames.
	g.take()
	p := to(1, 50)
	p.Flags = pt.ACK | pt.PSH
	again := train(p, 7)
	r.inject(again...)
	r.step()
	packets(t, g.got, again...)
	for _, f := range g.got {
		if (f.hdr != virtio.NetHdr{Flags: virtio.HdrDataValid}) {
			t.Errorf("header %+v of a lone frame", f.hdr)
		}
	}
}

// The queue is a ring: it goes on behind its end.
func TestTheQueueGoesRound(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	p := to(1, 64)
	p.Flags = pt.ACK | pt.PSH
	var want [][]byte
	g.room = 0
	for range 60 {
		f := train(p, 25)
		p.Seq += 25 * 64
		p.ID += 25
		want = append(want, f...)
		r.inject(f...)
		g.room += 24
		r.step()
	}
	g.room = -1
	r.step()
	packets(t, g.got, want...)
}

func TestTwoGuestsInOneHandGetTheirOwnFrames(t *testing.T) {
	r := newRig(t)
	a, b := r.vm(1), r.vm(2)
	a.room = 0
	fa, fb := train(to(1, 500), 4), train(to(2, 500), 4)
	for i := range 4 {
		r.inject(fa[i], fb[i])
	}
	r.step()
	packets(t, b.got, fb...)
	a.room = -1
	r.step()
	packets(t, a.got, fa...)
}

// The table gives a frame out for a port that nobody has: its chunks come back.
func TestAFrameForNoPortGivesItsChunksBack(t *testing.T) {
	r := newRig(t)
	for _, port := range []uint32{7, MaxPorts, 1 << 31} {
		_, d, _ := r.nic.AllocTx()
		r.w.Deliver(&flowtable.Superframe{Port: port, Refs: []uint64{d.Addr}, Entry: flowtable.Entry{Packets: 1}})
	}
	r.check()
}

// crowd lets more chunks leave the table in one burst than may wait for one guest without room. It returns the packets in the
// order in which they leave: 64 alone, then two superframes of 50.
func (r *rig) crowd() [][]byte {
	r.tb.Helper()
	if err := r.w.table.SetPort(1, rules(func(c *flowtable.PortConfig) { c.Hold = time.Second }), 0); err != nil {
		r.tb.Fatal(err)
	}
	var held [][]byte
	for i := range 2 {
		f := train(to(1, 100).With(func(p *pt.TCP) { p.SrcPort = 2000 + uint16(i) }), 50)
		held = append(held, f...)
		r.inject(f...)
		r.step()
	}
	p := to(1, 100)
	p.Flags = pt.ACK | pt.PSH
	lone := train(p, BurstFrames)
	r.inject(lone...)
	r.advance(2 * time.Second)
	r.step()
	return append(lone, held...)
}

// The bound is for guests without room. One with room gets a burst that is larger.
func TestABurstForAGuestWithRoomHasNoBound(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 512 })
	g := r.vm(1)
	want := r.crowd()
	packets(t, g.got, want...)
	r.dropped(1, nil)
}

// A guest that turns out to have no room keeps the oldest of what is there already.
func TestOfWhatWaitsAlreadyTheNewestIsDropped(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 512 })
	g := r.vm(1)
	g.room = 0
	want := r.crowd()
	if n := r.w.ports[1].out.chunks; n != 114 {
		t.Errorf("%d chunks wait: 128 may, and the last 50 belong together", n)
	}
	r.dropped(1, byReason{flowtable.ReasonGuestNoBuffers: 50})
	g.room = -1
	r.step()
	packets(t, g.got, want[:114]...)
}

// A guest whose part of the turn is used up gets the rest in the turns that follow, in order, and nobody sleeps meanwhile.
func TestATurnThatIsOverDropsNothing(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.pieces = walkTurn / 4 // four frames are a turn
	p := to(1, 100)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 38)
	r.inject(want...)
	for n := 4; n < len(want); n += 4 {
		if !r.step() {
			t.Fatal("a guest could go on, and the worker would sleep")
		}
		if len(g.got) != n || r.w.ports[1].hungry {
			t.Fatalf("%d frames after %d turns, hungry %v", len(g.got), n/4, r.w.ports[1].hungry)
		}
	}
	r.step()
	packets(t, g.got, want...)
	r.dropped(1, nil)
}
