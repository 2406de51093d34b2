package datapath

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// sleeper makes the worker of a rig take so long in each Put of a guest, asleep in a fault or parked by the runtime, and counts how
// often it did.
func (r *rig) sleeper(g *fakeGuest, took time.Duration, asleep bool) (touches *int) {
	touches = new(int)
	n := waits{sleeps: 1}
	r.w.waits = func() waits { return n }
	g.refuse = func(*Frame) bool {
		*touches++
		r.advance(took)
		if n.sleeps++; asleep { // and without a fault: it was parked, for whatever reason
			n.faults++
		}
		return false
	}
	return touches
}

// A VM whose memory makes the worker sleep gets its share of the worker's time and no more. The VMs beside it lose nothing, what
// waits for it waits within its bounds, each packet is explained, and when its memory is quick again it is served again.
func TestAVMWhoseMemoryMakesTheWorkerSleepRests(t *testing.T) {
	for _, took := range []time.Duration{20 * time.Millisecond, 300 * time.Microsecond} { // the short ones are many, and are found out by that
		const pause, run = time.Millisecond, time.Minute
		r := newRig(t)
		bad, good := r.vm(1), r.vm(2)
		r.sleeper(bad, took, true)
		other := to(2, 500)
		other.SrcPort = 7
		sent := 0
		for r.now.Load() < run.Nanoseconds() {
			r.inject(to(1, 500).Frame(), other.Frame())
			sent++
			r.step()
			r.advance(pause)
		}
		stalled := time.Duration(r.w.ports[1].cnt.StalledNS)
		if most := stallCredit + run/stallShare + 2*took; stalled > most || stalled < most/2 {
			t.Errorf("the worker slept %v in %v, its share is %v", stalled, run, most)
		}
		if r.w.ports[1].cnt.Rests == 0 {
			t.Error("its rests are not counted")
		}
		if len(good.got) != sent || r.w.ports[2].stall.until != 0 {
			t.Errorf("the VM beside it got %d of %d frames, and rests until %d", len(good.got), sent, r.w.ports[2].stall.until)
		}
		if l := r.ledger(1); l.Dropped[flowtable.ReasonGuestNoBuffers] == 0 {
			t.Error("nothing was dropped for a VM that rests most of the time")
		}
		bad.refuse = nil
		r.advance(restMost)
		before := len(bad.got)
		r.step()
		if r.w.ports[1].out.n > 0 || len(bad.got) == before {
			t.Errorf("after its rest it got %d frames, %d wait", len(bad.got)-before, r.w.ports[1].out.n)
		}
	}
}

// Sleeps are the VM's in whose memory they were, however short: not those of the VM that is next, nor of the one that sends to it.
func TestSleepsAreBookedWhereTheyWere(t *testing.T) {
	r := newRig(t)
	bad, good := r.vm(1), r.vm(2)
	r.w.wary = true
	r.sleeper(bad, 20*time.Microsecond, true)
	good.refuse = func(*Frame) bool { r.advance(500 * time.Microsecond); return false } // it works, and does not sleep
	other := to(2, 500)
	other.SrcPort = 7
	for range 1000 {
		r.inject(to(1, 500).Frame(), other.Frame())
		r.step()
	}
	if a, b := r.w.ports[1].cnt.StalledNS, r.w.ports[2].cnt.StalledNS; a < 15e6 || a > 25e6 || b != 0 {
		t.Errorf("booked %d ns, and %d on the VM beside it", a, b)
	}
	src := &fakeSource{fd: -1}
	r.addPort(PortConfig{Index: 3, Addr: Addr{MAC: macOf(3)}})
	r.start(3, rules(), src)
	frame := to(1, 500)
	frame.SrcMAC = macOf(3)
	before := r.w.ports[1].cnt.StalledNS
	for range 100 {
		src.send(virtio.NetHdr{}, frame.Frame())
		r.step()
	}
	if r.w.ports[3].cnt.StalledNS != 0 || r.w.ports[1].cnt.StalledNS == before {
		t.Errorf("the sender is booked %d ns, the receiver %d", r.w.ports[3].cnt.StalledNS, r.w.ports[1].cnt.StalledNS-before)
	}
}

// A worker that sleeps for itself, however often, is not wary for that.
func TestAWorkersOwnSleepMakesNobodySuspect(t *testing.T) {
	r := newRig(t)
	r.vm(1)
	n := waits{sleeps: 1}
	r.w.waits = func() waits { return n }
	for range 5 * stallSteps {
		n.sleeps++
		r.w.polls++
		r.step()
	}
	if r.w.wary {
		t.Error("wary")
	}
	for range 2 * stallSteps {
		n.sleeps += 2
		r.w.polls++
		r.step()
	}
	if !r.w.wary {
		t.Error("half of the sleeps are not its own, and it is not wary")
	}
}

// A worker that was preempted or parked, for as long and as often as may be, blames nobody.
func TestAPreemptedWorkerBlamesNobody(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	touches := r.sleeper(g, 20*time.Millisecond, false)
	for range 500 {
		r.inject(to(1, 500).Frame())
		r.step()
	}
	if !r.w.wary || *touches != 500 || r.w.ports[1].cnt.StalledNS != 0 || len(g.got) != 500 {
		t.Errorf("wary %v, %d of 500 frames put, %d got, stalled %d ns", r.w.wary, *touches, len(g.got), r.w.ports[1].cnt.StalledNS)
	}
}

// While a VM rests its rings are let alone: its frames are not polled for, no kick is asked of it, and the worker sleeps until the
// rest is over, and not longer.
func TestARestingVMsRingsAreLetAlone(t *testing.T) {
	r := newRig(t)
	r.addPort(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}})
	src := &fakeSource{fd: -1}
	g := r.start(1, rules(), src)
	r.step()
	g.refuse = func(*Frame) bool { t.Error("its memory is touched"); return false }
	r.w.wary = true
	r.w.ports[1].stall.until = r.now.Load() + time.Second.Nanoseconds()
	src.send(virtio.NetHdr{}, to(9, 100).Frame())
	r.inject(to(1, 500).Frame())
	r.step()
	polls, arms := len(src.queue), src.arms
	if r.w.arm() {
		t.Error("ready")
	}
	if d := r.w.timeout(); d <= 0 || d > time.Second {
		t.Errorf("sleeps for %v", d)
	}
	r.advance(time.Second - 1)
	r.step()
	if len(src.queue) != polls || src.arms != arms {
		t.Error("its rings are touched")
	}
	g.refuse = nil
	r.advance(1)
	r.step()
	if len(src.queue) != 0 || len(g.got) != 1 {
		t.Errorf("after the rest %d frames wait in its ring, it got %d", len(src.queue), len(g.got))
	}
	if d := r.w.timeout(); d >= 0 {
		t.Errorf("it goes on waking up: %v", d)
	}
}

// A real worker, and a real VM whose process punches holes into its memory all the time: each page fault then waits until the hole
// is made. The worker sleeps for a share of the time; unhindered it is most of it.
func TestAVMThatPunchesHolesCostsItsShare(t *testing.T) {
	const rings, region, bufLen, run = 4 << 20, 192 << 20, 4096, 3 * time.Second
	v := newUserVM(t, allFeatures, 256, rings+region)
	gpa, mem, err := v.Alloc(region, rings) // behind the rings, which stay
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	longest := make(chan time.Duration)
	go func() {
		most := time.Duration(0)
		for !stop.Load() {
			_ = unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
			began := time.Now()
			_ = unix.Fallocate(v.MemoryFile(), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, rings, region)
			most = max(most, time.Since(began))
		}
		longest <- most
	}()
	r := running(t)
	r.userPort(v)
	next, out := uint64(0), 0
	began := time.Now()
	for time.Since(began) < run {
		for ; out < 128; out++ {
			at := next * 37 * bufLen % region
			if err := v.RX(0).Driver.Add([]vring.Buffer{{Addr: gpa + at, Len: bufLen, Writable: true}}, next); err != nil {
				t.Fatal(err)
			}
			next++
		}
		if v.RX(0).Driver.Publish() {
			v.RX(0).Kick()
		}
		for {
			if _, _, ok := v.RX(0).Driver.Used(); !ok {
				break
			}
			out--
		}
		r.nic.inject(pushed(1)[0], nil)
		time.Sleep(200 * time.Microsecond)
	}
	ran := time.Since(began)
	stop.Store(true)
	most := <-longest
	var stalled time.Duration
	r.on(func() { stalled = time.Duration(r.w.ports[1].cnt.StalledNS) })
	t.Logf("slept %v of %v, the longest hole took %v", stalled, ran, most)
	if stalled == 0 {
		t.Error("the worker never slept: this showed nothing")
	}
	if bound := stallCredit + ran/stallShare + 2*most; stalled > bound {
		t.Errorf("more than %v", bound)
	}
}
