package datapath

import (
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

// noSuper is a guest that throws superframes away.
func noSuper(super bool, _ int) bool { return !super }

// A guest that drops every superframe is found out within a second of traffic, however many connections it has, and is served single
// packets: its transfers go on.
func TestAGuestThatDropsSuperframesGetsSingles(t *testing.T) {
	for _, flows := range []int{1, 2, 8, 40} {
		t.Run(fmt.Sprint(flows), func(t *testing.T) {
			n := newSimNet(newRig(t), 1, flows)
			n.guestTakes = noSuper
			took := n.run(2*time.Second, n.single)
			t.Logf("found out after %v, by %d superframes", took, n.r.ledger(1).Superframes)
			if took > time.Second {
				t.Fatal("later than a second")
			}
			before := n.arrived()
			n.run(2*time.Second, nil)
			if n.arrived() < before+500 || n.passedFor(flowtable.ReasonGuestRefuses) == 0 {
				t.Errorf("%d segments arrived in 2 s, %d passed for the reason", n.arrived()-before, n.passedFor(flowtable.ReasonGuestRefuses))
			}
		})
	}
}

// Also one whose senders write little, and fall silent by themselves.
func TestAGuestThatDropsSuperframesOfSlowSenders(t *testing.T) {
	n := newSimNet(newRig(t), 1, 4)
	n.writing(50 * time.Millisecond)
	n.guestTakes = noSuper
	if took := n.run(3*time.Second, n.single); took > time.Second {
		t.Errorf("found out after %v", took)
	}
}

// Also one that takes superframes at first, as one does whose operator loads an XDP program: with whole windows on their way.
func TestAGuestThatBeginsToDropSuperframes(t *testing.T) {
	for _, flows := range []int{1, 8, 40} {
		t.Run(fmt.Sprint(flows), func(t *testing.T) {
			n := newSimNet(newRig(t), 1, flows)
			n.run(2*time.Second, nil)
			if n.single() || n.refusals() != 0 {
				t.Fatal("found out before it began")
			}
			n.guestTakes = noSuper
			if took := n.run(2*time.Second, n.single); took > time.Second {
				t.Errorf("found out after %v", took)
			}
		})
	}
}

// The guest is tried again after a pause that grows as long as it goes on, and hardly feels it; when it takes superframes again it gets
// them again.
func TestARefusalIsTriedAgain(t *testing.T) {
	n := newSimNet(newRig(t), 1, 1)
	is := func(m refusalMode) func() bool { return func() bool { return n.r.w.ports[1].refusal.mode == m } }
	n.guestTakes = noSuper
	n.run(2*time.Second, is(refused))
	for pause := refusalPause; pause <= 2*refusalPause; pause *= 2 {
		if took := n.run(pause+time.Second, is(trying)); took < pause-time.Second || took > pause+simRTO {
			t.Fatalf("tried again after %v, want %v", took, pause)
		}
		if n.r.w.ports[1].refusal.singleFor(n.r.w.now) == 0 {
			t.Error("a guest that has not stood its trial is called a good one")
		}
		before := n.arrived()
		took := n.run(10*time.Second, is(refused))
		if n.refusals() == 0 || took > 2*refusalRounds*refusalAnswer {
			t.Fatalf("a trial of %v", took)
		}
		if got := n.arrived() - before; got < int(took/simTick)*simWindow/2 {
			t.Errorf("%d segments in a trial of %v", got, took)
		}
	}
	n.guestTakes = nil
	n.run(4*refusalPause+10*time.Second, is(superframes))
	refusals, supers := n.refusals(), n.r.ledger(1).Superframes
	n.run(4*time.Second, nil)
	if !is(superframes)() || n.r.w.ports[1].refusal.singleFor(n.r.w.now) != 0 || n.refusals() != refusals || n.r.ledger(1).Superframes < supers+100 {
		t.Errorf("a guest that takes superframes again: %d superframes", n.r.ledger(1).Superframes-supers)
	}
}

// Nobody is accused who takes superframes: whatever the wire loses, however the guest stands still, or if it drops everything; and who
// drops frames of all kinds alike hardly ever.
func TestWhoTakesSuperframesIsNotAccused(t *testing.T) {
	many := []int{1, 8, 40}
	if testing.Short() { // under the race detector
		many = []int{4}
	}
	stands := func(of, every time.Duration) func(time.Duration) bool {
		return func(now time.Duration) bool { return now%every < of }
	}
	for name, prepare := range map[string]func(n *simNet){
		"all is well": func(*simNet) {},
		"bursts end anywhere, and it stands still": func(n *simNet) { n.cuts, n.stands = 40, stands(300*time.Millisecond, time.Second) },
		"bursts end anywhere, the wire loses 3 %":  func(n *simNet) { n.cuts, n.wireLoses = 40, 0.03 },
		"requests each second, no probes, and it stands still longer than their timeout": func(n *simNet) {
			n.noProbes, n.stands = true, stands(300*time.Millisecond, time.Second)
			n.writing(time.Second)
		},
		"the wire loses 1 %":         func(n *simNet) { n.wireLoses = 0.01 },
		"the wire loses 10 %":        func(n *simNet) { n.wireLoses = 0.1 },
		"the wire loses 30 %":        func(n *simNet) { n.wireLoses = 0.3 },
		"it stands still for 30 ms":  func(n *simNet) { n.stands = stands(30*time.Millisecond, 200*time.Millisecond) },
		"it stands still for 300 ms": func(n *simNet) { n.stands = stands(300*time.Millisecond, time.Second) },
		"it stands still for 700 ms": func(n *simNet) { n.stands = stands(700*time.Millisecond, time.Second) },
		"it drops a tenth of all":    func(n *simNet) { n.guestTakes = func(bool, int) bool { return n.random.IntN(10) > 0 } },
		"it drops a quarter of all":  func(n *simNet) { n.guestTakes = func(bool, int) bool { return n.random.IntN(4) > 0 } },
		"it drops all in the end":    func(n *simNet) { n.guestTakes = func(_ bool, at int) bool { return at < 3000 } },
	} {
		for _, flows := range many {
			t.Run(fmt.Sprintf("%s, %d flows", name, flows), func(t *testing.T) {
				n := newSimNet(newRig(t), 1, flows)
				prepare(n)
				n.run(6*time.Second, nil)
				// One that drops frames of all kinds at random, of few flows, happens to drop what one would that refuses: once in twenty times.
				if n.refusals() > 0 && (n.guestTakes == nil || n.refusals() > 1) {
					t.Errorf("accused %d times; %d superframes, %d segments", n.refusals(), n.r.ledger(1).Superframes, n.arrived())
				}
			})
		}
	}
}

// A driver that starts again, another VM with the index, and a policy that is set, get superframes again at once.
func TestARefusalIsForgotten(t *testing.T) {
	for name, do := range map[string]func(n *simNet){
		"the driver starts again": func(n *simNet) { n.r.w.stopPort(1); n.g = n.r.start(1, rules()) },
		"another VM":              func(n *simNet) { n.g = n.r.vm(1) },
		"the policy is set":       func(n *simNet) { _ = n.r.w.setRules(1, rules()) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newSimNet(newRig(t), 1, 4)
			n.guestTakes = noSuper
			n.run(2*time.Second, n.single)
			n.guestTakes = nil
			do(n)
			before := n.r.ledger(1).Superframes
			n.run(time.Second, nil)
			if n.single() || n.r.ledger(1).Superframes == before {
				t.Errorf("single %t, %d superframes", n.single(), n.r.ledger(1).Superframes-before)
			}
		})
	}
}
