package flowtable_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

// anyConfig is a port's configuration by choice.
func anyConfig(s *source) flowtable.PortConfig {
	c := negotiated(flowtable.Profile(s.n(2)))
	c.Hold = []time.Duration{0, 50 * time.Microsecond, 300 * time.Microsecond}[s.n(3)]
	c.ECN, c.FixedID, c.MergeVLAN, c.PSHClose = s.one(2), !s.one(4), !s.one(4), s.one(4)
	switch s.n(16) {
	case 0:
		c.Coalesce = false
	case 1:
		c.IPv4 = false
	case 2:
		c.GuestCsum, c.TSO4, c.TSO6 = false, false, false
	case 3:
		c.TSO6 = false
	case 4:
		c.ExcludePorts = []uint16{1001}
	case 5:
		c.MaxSegments = 1 + s.n(5)
	case 6:
		c.MaxBytes = 1 + s.n(5000)
	case 7:
		c.MaxFrame = 1 + s.n(5000)
	case 8:
		c.RSCExt = !c.RSCExt
	}
	return c
}

// exercise runs traffic through a table with a few ports. With room, the oracle must agree; without, the table is too small
// for the traffic and pressure makes decisions that the oracle knows nothing of.
func exercise(tb testing.TB, s *source, steps, mss int, hostile, room bool) {
	tb.Helper()
	var ports []flowtable.PortConfig
	for range 1 + s.n(3) {
		ports = append(ports, anyConfig(s))
	}
	exercisePorts(tb, s, steps, mss, hostile, room, ports)
}

func exercisePorts(tb testing.TB, s *source, steps, mss int, hostile, room bool, ports []flowtable.PortConfig) {
	tb.Helper()
	cfg := flowtable.Config{Slots: 2048, MaxHeld: 1 << 16}
	if !room {
		cfg = flowtable.Config{Slots: 1 + s.n(6), MaxHeld: 1 + s.n(12)}
	}
	r := newRunner(tb, cfg, ports...)
	r.model = newOracle(ports)
	if s.one(2) {
		r.cut = s
	}
	t := newTraffic(s, len(ports), mss, hostile)
	for range steps {
		if s.done() {
			break
		}
		t.step(r)
		for port := range ports {
			r.count(uint32(port))
		}
		if r.tab.Open() > cfg.Slots || r.tab.Held() > cfg.MaxHeld {
			tb.Fatalf("P4: %d slots of %d, %d chunks of %d", r.tab.Open(), cfg.Slots, r.tab.Held(), cfg.MaxHeld)
		}
	}
	r.close()
	r.notHeldTooLong()
	if !room {
		return
	}
	for i, p := range r.model.ports {
		if p.closeAll("stop"); ports[i].Adaptive { // the oracle holds for as long as it may
			continue
		}
		var got []string
		for j := range r.out {
			if r.out[j].Port == uint32(i) {
				got = append(got, r.out[j].String())
			}
		}
		for j := range max(len(got), len(p.out)) {
			if a, b := line(got, j), line(p.out, j); a != b {
				tb.Fatalf("port %d %+v\nframe %d: %s, the oracle has %s", i, p.cfg, j, a, b)
			}
		}
	}
}

// notHeldTooLong is property P3: with Expire called at every deadline nothing is held longer than the hold.
func (r *runner) notHeldTooLong() {
	r.tb.Helper()
	for i := range r.out {
		o := &r.out[i]
		hold := int64(r.cfg[o.Port].Hold)
		if hold == 0 || o.Reason == flowtable.ReasonStop {
			continue
		}
		for _, ref := range o.Refs {
			if waited := o.at - r.in[ref].at; waited > hold+1000 {
				r.tb.Errorf("P3: packet %d waited %d ns with a hold of %d", ref, waited, hold)
			}
		}
	}
}

func TestPropertiesOnRandomTraffic(t *testing.T) {
	rounds := 80
	if testing.Short() || raceEnabled {
		rounds = 20
	}
	for _, c := range []struct {
		name          string
		mss           int
		hostile, room bool
	}{
		{"sane", ordinary, false, true}, {"hostile", ordinary, true, true}, {"hostile under pressure", ordinary, true, false},
		{"jumbo", jumbo, false, true}, {"hostile jumbo", jumbo, true, true}, {"hostile jumbo under pressure", jumbo, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range rounds {
				ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
					exercise(t, &source{rnd: rand.New(rand.NewPCG(uint64(seed), 7))}, 300, c.mss, c.hostile, c.room)
				})
				if !ok {
					t.FailNow()
				}
			}
		})
	}
}
