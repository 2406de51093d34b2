package datapath

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

func TestFramesOfAVMThatDoesNotRunAreRefusedAndCounted(t *testing.T) {
	r := newRig(t)
	r.addPort(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}, NoteSenders: true})
	want := train(to(1, 100), 3)
	r.inject(want...)
	r.step()
	l := r.ledger(1)
	if l.Refused != 3 || l.RefusedBytes != uint64(3*len(want[0])) || l.In != 0 {
		t.Errorf("ledger: %+v", *l)
	}
	r.dropped(1, byReason{flowtable.ReasonPortDown: 3})
	if got := r.nic.with(inWorker); got != 0 {
		t.Errorf("%d chunks did not come back", got)
	}
	if got := r.w.ports[1].senders.take(nil); len(got) != 0 {
		t.Errorf("senders %v of frames that were refused", got)
	}
}

func TestStoppingAPortDeliversWhatIsHeldAndClosesTheGuest(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	if err := r.w.table.SetPort(1, rules(func(c *flowtable.PortConfig) { c.Hold = time.Hour }), 0); err != nil {
		t.Fatal(err)
	}
	want := train(to(1, 1000), 4)
	r.inject(want...)
	r.step()
	if len(g.got) != 0 {
		t.Fatal("delivered before its time")
	}
	r.w.stopPort(1)
	r.check()
	packets(t, g.got, want...)
	if l := r.ledger(1); l.Sealed[flowtable.ReasonStop] != 1 || g.closed != 1 || r.w.ports[1].guest != nil {
		t.Errorf("closed %d times, ledger %+v", g.closed, *l)
	}
	r.w.stopPort(1) // again is no error
	r.inject(want...)
	r.step()
	r.dropped(1, byReason{flowtable.ReasonPortDown: 4})
	if g.closed != 1 {
		t.Errorf("closed %d times", g.closed)
	}
	next := r.start(1, rules())
	r.inject(want...)
	r.step()
	packets(t, next.got, want...)
}

func TestWhatAStoppingGuestHasNoRoomForIsCounted(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room = 2
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	r.inject(train(p, 5)...)
	r.step()
	r.w.stopPort(1)
	r.check()
	r.dropped(1, byReason{flowtable.ReasonPortDown: 3})
	if r.hungry() != 0 || g.closed != 1 {
		t.Errorf("%d hungry, closed %d times", r.hungry(), g.closed)
	}
}

// A new guest takes the place of the old one, which is closed first.
func TestStartingAPortThatRunsClosesTheOldGuest(t *testing.T) {
	r := newRig(t)
	old := r.vm(1)
	old.keeps, old.keepMost = true, 100
	r.inject(train(to(1, 1000), 4)...)
	r.step()
	next := r.start(1, rules())
	if old.closed != 1 || r.w.ports[1].held != 0 || r.nic.with(inWorker) != 0 {
		t.Errorf("closed %d times, %d chunks still out", old.closed, r.nic.with(inWorker))
	}
	r.check()
	want := train(to(1, 1000), 4)
	r.inject(want...)
	r.step()
	packets(t, next.got, want...)
}

// A guest that was finished is replaced by one that works.
func TestAPortStartsAgainAfterItsGuestWasFinished(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.broken = errFinished
	r.inject(to(1, 100).Frame())
	r.step()
	next := r.start(1, rules())
	want := train(to(1, 1000), 4)
	r.inject(want...)
	r.step()
	packets(t, next.got, want...)
	if r.w.ports[1].err != nil || g.closed != 1 {
		t.Errorf("the port has %v, the old guest was closed %d times", r.w.ports[1].err, g.closed)
	}
}

// The worker owns the guest from StartPort on, whatever becomes of it.
func TestAGuestThatCannotStartIsClosed(t *testing.T) {
	r := newRig(t)
	bad := flowtable.PortConfig{Hold: -1}
	g := r.newGuest()
	if err := r.w.startPort(9, g, nil, rules()); !errors.Is(err, ErrNoPort) || g.closed != 1 {
		t.Errorf("no such port: %v, closed %d times", err, g.closed)
	}
	g = r.newGuest()
	g.closeErr = errFinished
	if err := r.w.startPort(MaxPorts, g, nil, rules()); !errors.Is(err, ErrNoPort) || !errors.Is(err, errFinished) {
		t.Errorf("an index beyond all: %v", err)
	}
	r.vm(1)
	g = r.newGuest()
	if err := r.w.startPort(1, g, nil, bad); !errors.Is(err, flowtable.ErrConfig) || g.closed != 1 {
		t.Errorf("bad rules: %v, closed %d times", err, g.closed)
	}
	if r.w.ports[1].guest != nil {
		t.Error("a port that did not start has a guest")
	}
}

func TestAnIndexBelongsToOneVMAtATime(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.room, g.unsent = 1, 4
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	r.inject(train(p, 5)...)
	r.step()
	r.w.removePort(1)
	r.w.removePort(1) // an unknown index is no error
	r.w.removePort(MaxPorts + 5)
	r.check()
	if g.closed != 1 || r.w.port(1) != nil || len(r.w.list) != 0 || len(r.w.byAddr) != 0 {
		t.Fatalf("closed %d times, %d ports, %d addresses", g.closed, len(r.w.list), len(r.w.byAddr))
	}
	r.inject(p.Frame())
	r.nic.inject(p.Frame(), metaOf(1, p.Frame()))
	r.step()
	if r.w.cnt.Unknown != 2 || r.nic.with(inWorker) != 0 {
		t.Errorf("%d frames for a VM that has gone, %d chunks out", r.w.cnt.Unknown, r.nic.with(inWorker))
	}
	r.vm(1, func(c *PortConfig) { c.Addr.MAC = macOf(77) })
	if l := r.ledger(1); (*l != flowtable.Ledger{}) || (r.w.ports[1].cnt != PortCounters{}) {
		t.Errorf("the next VM starts with %+v", *l)
	}
	r.inject(to(1, 100).Frame(), to(77, 100).Frame())
	r.step()
	if l := r.ledger(1); l.In != 1 || r.w.cnt.Unknown != 3 {
		t.Errorf("%d frames for the new address, %d for the old", l.In, r.w.cnt.Unknown-2)
	}
}

// The other VMs keep their places when one in the middle goes.
func TestRemovingAVMLeavesTheOthers(t *testing.T) {
	r := newRig(t)
	guests := []*fakeGuest{r.vm(0), r.vm(1), r.vm(2)}
	srcs := []*fakeSource{{fd: -1}, {fd: -1}, {fd: -1}}
	for i := range uint32(3) {
		guests[i] = r.start(i, rules(), srcs[i])
	}
	r.w.removePort(1)
	for i := range uint32(3) {
		srcs[i].send(noHdr, to(200, 100).With(func(p *pt.TCP) { p.SrcMAC = macOf(i) }).Frame())
		r.inject(to(i, 100).Frame())
	}
	r.step()
	if len(guests[0].got) != 1 || len(guests[1].got) != 0 || len(guests[2].got) != 1 {
		t.Errorf("frames: %d, %d, %d", len(guests[0].got), len(guests[1].got), len(guests[2].got))
	}
	if len(r.nic.sent()) != 2 || len(srcs[1].queue) != 1 {
		t.Errorf("%d frames of the removed VM are still queued", len(srcs[1].queue))
	}
}

func TestFramesThatASteeringLeftBehindAreLate(t *testing.T) {
	r := newRig(t)
	r.vm(1)
	r.vm(2)
	r.w.ports[1].late = true
	r.inject(to(1, 100).Frame(), to(2, 100).Frame(), to(1, 100).Frame())
	r.step()
	if a, b := r.w.ports[1].cnt.Late, r.w.ports[2].cnt.Late; a != 2 || b != 0 {
		t.Errorf("%d and %d frames were late", a, b)
	}
	r.w.ports[1].late = false
	r.inject(to(1, 100).Frame())
	r.step()
	if n := r.w.ports[1].cnt.Late; n != 2 {
		t.Errorf("%d frames were late", n)
	}
}

func TestTheSendersOfRecentFramesAreKept(t *testing.T) {
	r := newRig(t)
	r.vm(1, func(c *PortConfig) { c.NoteSenders = true })
	r.vm(2)
	a, b := [6]byte{2, 9, 9, 9, 9, 1}, [6]byte{2, 9, 9, 9, 9, 2}
	for _, mac := range [][6]byte{a, b, a} {
		r.inject(to(1, 100).With(func(p *pt.TCP) { p.SrcMAC = mac }).Frame(), to(2, 100).Frame())
	}
	r.step()
	got := r.w.ports[1].senders.take(nil)
	if len(got) != 2 || got[0] == got[1] || (got[0] != a && got[0] != b) || (got[1] != a && got[1] != b) {
		t.Errorf("senders %v", got)
	}
	if again := r.w.ports[1].senders.take(nil); len(again) != 0 {
		t.Errorf("senders %v are told twice", again)
	}
}

func TestWhatAGuestNeverSentIsCounted(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.unsent, g.closeErr = 3, errFinished
	r.w.stopPort(1)
	if n := r.w.ports[1].cnt.Unsent; n != 3 {
		t.Errorf("%d frames unsent", n)
	}
	if !strings.Contains(r.log.String(), errFinished.Error()) {
		t.Errorf("nobody learns why the guest did not close: %q", r.log.String())
	}
}

func TestASnapshotAddsUp(t *testing.T) {
	group := &fakeMulticast{fd: -1, slow: 5, odd: 6}
	r := newRig(t, func(c *Config) { c.Multicast = group })
	r.nic.stats.RxRingFull, r.nic.statErr = 8, errLink
	a, b := r.vm(4), r.vm(2)
	r.addPort(PortConfig{Index: 9, Addr: Addr{VLAN: 7, MAC: macOf(9)}})
	a.room = 1
	b.keeps, b.keepMost = true, 100
	if err := r.w.table.SetPort(2, rules(func(c *flowtable.PortConfig) { c.Hold = time.Hour }), 0); err != nil {
		t.Fatal(err)
	}
	p := to(4, 100)
	p.Flags = pt.ACK | pt.PSH
	r.inject(train(p, 5)...)
	r.inject(train(to(2, 100), 3)...)
	q := to(2, 100)
	q.SrcPort, q.Flags = 99, pt.ACK|pt.PSH
	r.inject(q.Frame())
	f := to(4, 100).Frame()
	r.nic.inject(f, metaOf(9, f))
	r.step()
	b.checkErr = errFinished
	s := r.w.snapshot()
	if s.ID != 3 || s.Chunks != 2048 || s.HeldSlots != 1 || s.HeldRefs != 3 || s.Kernel.RxRingFull != 8 || s.KernelErr != errLink {
		t.Errorf("snapshot: %+v", *s)
	}
	if (s.Counters != QueueCounters{RxFrames: 10, WithMeta: 1, GroupLost: 5, GroupOdd: 6}) {
		t.Errorf("counters: %+v", s.Counters)
	}
	if len(s.Ports) != 3 || s.Port(5) != nil {
		t.Fatalf("%d ports", len(s.Ports))
	}
	pa, pb, pc := s.Port(4), s.Port(2), s.Port(9)
	if pa.Index != 4 || pa.Addr.MAC != macOf(4) || !pa.Running || !pa.Hungry || pa.Waiting != 4 || pa.InGuest != 0 || pa.Ledger.In != 5 || pa.Ledger.Queued != 4 {
		t.Errorf("port 4: %+v", *pa)
	}
	if pb.Index != 2 || !pb.Running || pb.Hungry || pb.Waiting != 0 || pb.InGuest != 1 || pb.Ledger.In != 4 || pb.Ledger.Held != 3 {
		t.Errorf("port 2: %+v", *pb)
	}
	if pc.Addr.VLAN != 7 || pc.Running || pc.Ledger.Refused != 1 {
		t.Errorf("port 9: %+v", *pc)
	}
	var all flowtable.Ledger
	for i := range s.Ports {
		all.Add(&s.Ports[i].Ledger)
	}
	if all.In+all.Refused != 10 || all.Unexplained() != 0 {
		t.Errorf("all ports together: %+v", all)
	}
	// It is a copy: what comes later is not in it.
	a.room = -1
	r.step()
	if pa.Waiting != 4 || pa.Ledger.Queued != 4 {
		t.Error("a snapshot changed")
	}
	b.broken = errFinished
	r.inject(q.Frame())
	r.step()
	s = r.w.snapshot()
	if !errors.Is(s.Port(2).Err, errFinished) {
		t.Errorf("a finished guest has %v", s.Port(2).Err)
	}
}

// What the worker holds when it stops is delivered, or counted; every guest is closed, and no chunk is out.
func TestAWorkerThatEndsLeavesNothingUnexplained(t *testing.T) {
	r := newRig(t)
	a, b := r.vm(1), r.vm(2)
	b.room, b.keeps, b.keepMost = 2, true, 100
	for i := range uint32(2) {
		if err := r.w.table.SetPort(i+1, rules(func(c *flowtable.PortConfig) { c.Hold = time.Hour }), 0); err != nil {
			t.Fatal(err)
		}
	}
	want := train(to(1, 1000), 4)
	r.inject(want...)
	for i := range 4 {
		r.inject(train(to(2, 100).With(func(p *pt.TCP) { p.SrcPort = 2000 + uint16(i) }), 2)...)
	}
	r.step()
	r.nic.busy = true
	r.w.finish()
	r.check()
	packets(t, a.got, want...)
	r.dropped(2, byReason{flowtable.ReasonPortDown: 4})
	if a.closed != 1 || b.closed != 1 || r.nic.with(inWorker) != 0 || r.ledger(1).Sealed[flowtable.ReasonStop] != 1 {
		t.Errorf("closed %d and %d times, %d chunks out", a.closed, b.closed, r.nic.with(inWorker))
	}
}

// While the front-end changes something and goes on, frames wait in order; none is lost, and none is called port_down.
func TestAPauseLosesNothing(t *testing.T) {
	r := newRig(t)
	first := r.vm(1)
	want := train(to(1, 200), 40)
	r.inject(want[:10]...)
	r.w.pausePort(1)
	r.step()
	r.inject(want[10:30]...)
	r.step()
	r.advance(time.Second)
	r.step()
	if len(first.got) != 0 || first.closed != 1 {
		t.Fatalf("the guest that went away got %d frames, was closed %d times", len(first.got), first.closed)
	}
	next := r.newGuest()
	if err := r.w.startPort(1, next, nil, rules()); err != nil {
		t.Fatal(err)
	}
	r.inject(want[30:]...)
	r.step()
	r.advance(time.Second)
	r.step()
	packets(t, next.got, want...)
	r.dropped(1, nil)
}

// A pause that ends in a stop gives up, counted, what waited.
func TestAPauseThatEndsInAStopIsAStop(t *testing.T) {
	r := newRig(t)
	r.vm(1)
	r.w.pausePort(1)
	r.inject(train(to(1, 200), 10)...)
	r.step()
	r.w.stopPort(1)
	r.step()
	r.dropped(1, byReason{flowtable.ReasonPortDown: 10})
}

// An address may have moved to another VM before the one that had it is removed.
func TestRemovingAVMLeavesItsAddressToTheNext(t *testing.T) {
	r := newRig(t)
	r.vm(1)
	next := r.vm(2, func(c *PortConfig) { c.Addr.MAC = macOf(1) })
	r.w.removePort(1)
	f := to(1, 100).Frame()
	r.inject(f)
	r.step()
	packets(t, next.got, f)
}

// What a stopped port's sources were is not kept alive.
func TestAStoppedPortsSourcesAreForgotten(t *testing.T) {
	r := newRig(t)
	r.sender(1)
	r.sender(2)
	r.w.stopPort(1)
	for i, e := range r.w.egress[:cap(r.w.egress)] {
		if (i == 0) != (e != nil) {
			t.Errorf("place %d: %v", i, e)
		}
	}
}

// Nothing crosses between a VM that is isolated and those beside it; the wire is reached by all.
func TestAnIsolatedVMAndItsNeighboursAreApart(t *testing.T) {
	for _, who := range []uint32{1, 2} { // the sender, or the receiver
		r := newRig(t)
		_, s := r.sender(1, func(c *PortConfig) { c.Isolated = who == 1 })
		q := r.vm(2, func(c *PortConfig) { c.Isolated = who == 2 })
		s.send(noHdr, from(1, macOf(2), 100).Frame(), from(1, [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 100).Frame(), from(1, wire, 100).Frame())
		r.step()
		if n := len(r.nic.sent()); n != 2 || len(q.got) != 0 {
			t.Errorf("VM %d is isolated: %d frames on the wire, want the broadcast and the last; %d at the neighbour", who, n, len(q.got))
		}
		if n := r.w.ports[1].cnt.TxDropped[flowtable.ReasonIsolated]; n != 1 {
			t.Errorf("VM %d is isolated: %d frames dropped for it", who, n)
		}
	}
}

// What waits for guests that are away is bounded as for guests without room, all of them together.
func TestWhatWaitsForAPauseToEndIsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 1024 })
	const vms = 4
	for i := range uint32(vms) {
		r.vm(i)
		r.w.pausePort(i)
	}
	for range 3 {
		for i := range uint32(vms) {
			p := to(i, 100)
			p.Flags = pt.ACK | pt.PSH
			r.inject(train(p, BurstFrames)...)
			r.step()
		}
	}
	r.step()
	for i := range uint32(vms) {
		if n := r.w.ports[i].out.chunks; n != 1024/4/vms {
			t.Errorf("%d chunks wait for guest %d, %d may", n, i, 1024/4/vms)
		}
		r.dropped(i, byReason{flowtable.ReasonGuestNoBuffers: 3*BurstFrames - 1024/4/vms})
		g := r.start(i, rules())
		r.step()
		if len(g.got) != 1024/4/vms {
			t.Errorf("%d frames for a guest that is back", len(g.got))
		}
	}
	if r.hungry() != 0 {
		t.Errorf("%d guests are hungry", r.hungry())
	}
}
