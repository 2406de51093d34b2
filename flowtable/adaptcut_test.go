package flowtable_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

// Trains that Linux hands to its NIC at once and marks with PSH come in superframes of 22 and more segments also where a worker takes most of
// them in two parts, in whatever place: it takes what has come until then.
func TestAdaptiveHoldMendsTrainsThatWereCut(t *testing.T) {
	const train, per = 45, 1700 // ns a packet: 7 Gb/s
	for _, flows := range []int{1, 8, 64} {
		rnd := rand.New(rand.NewPCG(uint64(flows), 2))
		s := newHoldSim(t, holdBound, true, flowtable.DefaultSlots, holdRoom)
		for i := range flows {
			t := int64(train * per)
			s.add(holdFlow{train: train, psh: true, period: t * int64(max(flows, 2)), cut: func() (int, int64) {
				if rnd.IntN(10) < 4 {
					return 0, 0
				}
				return 1 + rnd.IntN(train-1), 20e3 + rnd.Int64N(50e3)
			}}, simPayload, int64(i)*t)
		}
		s.run(time.Second)
		s.report()
		if s.largePercent() < 95 {
			t.Errorf("%d flows: %.1f %%", flows, s.largePercent())
		}
	}
}
