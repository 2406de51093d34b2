package flowtable_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

const (
	holdBound = 10 * time.Millisecond
	holdRoom  = 16384 // chunks held: of the 32,768 of a queue
)

// openLoop are senders that send whatever becomes of their packets: trains of a length, one sender after the other, a packet every per ns.
func openLoop(tb testing.TB, flows, train int, per int64) *holdSim {
	s := newHoldSim(tb, holdBound, true, flowtable.DefaultSlots, holdRoom)
	for i := range flows {
		t := int64(train) * per
		s.add(holdFlow{train: train, spacing: per, period: t * int64(flows)}, simPayload, int64(i)*t)
	}
	return s
}

// At least 90 % of the bytes of bulk come in frames of 22 and more segments, with one flow on a queue and with 512, where they can: so many
// segments of a flow come within the longest hold.
func TestAdaptiveHoldMakesBulkLarge(t *testing.T) {
	for _, c := range []struct {
		flows, train int
		per          int64 // ns: 12,000 is 1 Gb/s, 1,200 is 10, 480 is 25
		span         time.Duration
	}{
		{1, 1, 12000, time.Second}, {1, 1, 480, 50 * time.Millisecond}, {8, 1, 1200, 100 * time.Millisecond}, {8, 20, 12000, time.Second},
		{64, 1, 1200, 400 * time.Millisecond}, {64, 8, 1600, 400 * time.Millisecond}, {512, 1, 480, 400 * time.Millisecond},
		{512, 8, 480, 500 * time.Millisecond}, {512, 44, 1200, 600 * time.Millisecond},
	} {
		if c.flows > 64 && (raceEnabled || testing.Short()) { // ten times as slow, and more of the same
			continue
		}
		t.Run(fmt.Sprintf("%d flows, trains of %d, %d ns", c.flows, c.train, c.per), func(t *testing.T) {
			s := openLoop(t, c.flows, c.train, c.per)
			s.run(c.span)
			s.report()
			if s.largePercent() < 90 {
				t.Errorf("%.1f %%", s.largePercent())
			}
		})
	}
}

// 1,024 flows that take turns packet by packet: 16 and more segments a frame.
func TestAdaptiveHoldMergesAThousandFlows(t *testing.T) {
	if raceEnabled {
		t.Skip("a million packets take a minute with the race detector")
	}
	s := openLoop(t, 1024, 1, 480)
	s.run(400 * time.Millisecond)
	s.report()
	if s.perFrame() < 16 {
		t.Errorf("%.1f segments a frame", s.perFrame())
	}
}

// closedLoop are senders that send a train, and the next one so long after all of it has arrived: their windows, or their questions, are of
// that length.
func closedLoop(tb testing.TB, hold time.Duration, adaptive bool, flows, train, payload int, answer int64) *holdSim {
	s := newHoldSim(tb, hold, adaptive, flowtable.DefaultSlots, holdRoom)
	for i := range flows {
		s.add(holdFlow{train: train, spacing: 1200, answer: answer}, payload, int64(i)*1000)
	}
	return s
}

// Questions and answers take no longer than without a hold: not where PSH ends them, and not where a sender leaves it out, which costs a try
// now and then.
func TestQuestionsAndAnswersAreNotHeld(t *testing.T) {
	for _, c := range []struct {
		flows, train, payload int
		answer                int64
		psh                   bool
	}{
		{1, 1, 100, 100e3, false}, {1, 1, 1000, 100e3, false}, {1, 3, simPayload, 100e3, false}, {16, 1, 1000, 30e3, false}, {1, 1, 1000, 2e6, false},
		{1, 3, simPayload, 100e3, true}, {8, 10, simPayload, 50e3, true},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			trips := func(hold time.Duration) int {
				s := closedLoop(t, hold, true, c.flows, c.train, c.payload, c.answer)
				for i := range s.flows {
					s.flows[i].psh = c.psh
				}
				s.run(time.Second)
				s.report()
				return s.trips()
			}
			if with, without := trips(holdBound), trips(0); with*100 < without*98 || without == 0 {
				t.Errorf("%d trips, %d without a hold", with, without)
			}
		})
	}
}

// A sender whose window is used up, and who waits for the acknowledgement of what is held, sends no less than with the best fixed hold.
func TestAFullWindowIsNotHeldBack(t *testing.T) {
	for _, c := range []struct {
		flows, window int
		answer        int64
	}{{1, 10, 30e3}, {1, 30, 100e3}, {8, 10, 100e3}, {8, 40, 400e3}, {64, 10, 500e3}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			trips := func(hold time.Duration, adaptive bool) int {
				s := closedLoop(t, hold, adaptive, c.flows, c.window, simPayload, c.answer)
				s.run(400 * time.Millisecond)
				s.report()
				return s.trips()
			}
			best := 0
			for _, hold := range []time.Duration{50 * time.Microsecond, 200 * time.Microsecond, time.Millisecond} {
				best = max(best, trips(hold, false))
			}
			if got := trips(holdBound, true); got*100 < best*95 || best == 0 {
				t.Errorf("%d windows, %d with the best fixed hold", got, best)
			}
		})
	}
}

// The same packets at the same times get the same holds, whatever the process: a seed is given.
func TestAdaptiveHoldsAreDeterministic(t *testing.T) {
	once := func() (out []int64) {
		s := openLoop(t, 300, 3, 1000)
		s.tap = func(sf *flowtable.Superframe) {
			out = append(out, s.now, int64(sf.Segments), sf.Held, int64(sf.Refs[0]&0xffff))
		}
		s.run(50 * time.Millisecond)
		return out
	}
	if a, b := once(), once(); !slices.Equal(a, b) || len(a) == 0 {
		t.Errorf("%d and %d figures differ", len(a), len(b))
	}
}

// All that holds of fixed holds holds of adaptive ones, whatever comes: see runner.
func TestPropertiesWithAnAdaptiveHold(t *testing.T) {
	rounds := 60
	if testing.Short() || raceEnabled {
		rounds = 15
	}
	for _, room := range []bool{true, false} {
		for seed := range rounds {
			s := &source{rnd: rand.New(rand.NewPCG(uint64(seed), 11))}
			var ports []flowtable.PortConfig
			for range 1 + s.n(3) {
				c := anyConfig(s)
				c.Adaptive = true
				c.Hold *= time.Duration(1 + s.n(20))
				ports = append(ports, c)
			}
			exercisePorts(t, s, 600, ordinary, true, room, ports)
			if t.Failed() {
				t.Fatalf("seed %d, room %v", seed, room)
			}
		}
	}
}

// A change of the policy ends what is held under the old one, and either kind of hold is in force at once.
func TestAHoldBecomesAdaptiveAndFixedAgain(t *testing.T) {
	d := flow(0).Train(3)
	scenario(t, negotiated(flowtable.GRO), []any{
		setPort(func(c *flowtable.PortConfig) { c.Adaptive, c.Hold = true, time.Millisecond }), d[0],
		setPort(func(c *flowtable.PortConfig) { c.Adaptive = false }), d[1], wait(900 * time.Microsecond), d[2], wait(100 * time.Microsecond),
	}, "0 policy, 1+2 deadline")
}

// Without a hold to adapt it is the end of the burst.
func TestAdaptiveHoldOfZeroIsTheEndOfTheBurst(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Adaptive, c.Hold = true, 0
	d := flow(0).Train(2)
	scenario(t, c, []any{d[0], d[1], endBurst{}}, "0+1 burst_end")
}
