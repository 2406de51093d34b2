package observe

import (
	"math"
	"testing"
)

func about(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestTheCurveGoesThroughWhatWasMeasured(t *testing.T) {
	for _, c := range []struct{ segments, part float64 }{{1, 0}, {10, 0.85}, {22, 0.91}, {45, 0.94}, {0, 0}, {0.5, 0}, {46, 0.94}, {1e9, 0.94}} {
		if got := gainPart(c.segments); !about(got, c.part) {
			t.Errorf("%v segments bring %v, want %v", c.segments, got, c.part)
		}
	}
}

func TestMoreSegmentsNeverBringLess(t *testing.T) {
	last := 0.0
	for n := 1.0; n < 100; n += 0.25 {
		got := gainPart(n)
		if got < last || got > 1 {
			t.Fatalf("%v segments bring %v after %v", n, got, last)
		}
		last = got
	}
}

// The cost per frame is spread over its segments: two to a frame halve it.
func TestBetweenTwoPointsTheCostPerFrameCounts(t *testing.T) {
	// 1/2 is 5/9 of the way from 1 to 1/10.
	if got, want := gainPart(2), 0.85*5/9; !about(got, want) {
		t.Errorf("2 segments bring %v, want %v", got, want)
	}
}

func TestEstimate(t *testing.T) {
	for _, c := range []struct {
		name        string
		now, then   float64
		guestGRO    float64
		withoutSelf float64
	}{
		// cost(n) = 1 - (1 - 1/gain) * part(n)
		{"from single segments to full frames", 1, 45, (1 - 1/1.7) * 0.94, (1 - 1/2.4) * 0.94},
		{"from single segments to 10", 1, 10, (1 - 1/1.7) * 0.85, (1 - 1/2.4) * 0.85},
		{"from 10 to 45", 10, 45, 1 - (1-(1-1/1.7)*0.94)/(1-(1-1/1.7)*0.85), 1 - (1-(1-1/2.4)*0.94)/(1-(1-1/2.4)*0.85)},
		{"nothing to gain", 45, 45, 0, 0},
		{"never below nothing", 45, 10, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := Estimate(c.now, c.then)
			if !about(e.GuestGRO, c.guestGRO) || !about(e.NoGuestGRO, c.withoutSelf) {
				t.Errorf("%+v, want %v and %v", e, c.guestGRO, c.withoutSelf)
			}
		})
	}
}
