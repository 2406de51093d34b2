package controller

import (
	"testing"
	"time"
)

// A VM that cannot be attached again is tried at once, and then less and less often; what touches the interface least of all.
func TestTriesToAttachAgainGrowApart(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		name       string
		looked     bool
		tries, max int // in ten minutes
	}{{"only looks", true, 122, 125}, {"touches the interface", false, 12, 16}} {
		r := retries{}
		r.asleep("db1", true, start)
		n := 0
		for now := start; now.Before(start.Add(10 * time.Minute)); now = now.Add(100 * time.Millisecond) {
			if r.ready("db1", now) {
				n++
				r.failed("db1", c.looked, now)
			}
		}
		if n < c.tries || n > c.max {
			t.Errorf("%s: tried %d times in ten minutes, want %d to %d", c.name, n, c.tries, c.max)
		}
		if !r.ready("db1", start.Add(time.Hour)) {
			t.Errorf("%s: never tried again", c.name)
		}
	}
}

// News of the interfaces make a VM be tried that waits for its tap, and not one whose tries shake the interface.
func TestNewsShortenTheWaitOfWhatOnlyLooks(t *testing.T) {
	now := time.Unix(1000, 0)
	r := retries{}
	for range 10 {
		r.failed("waits", true, now)
		r.failed("shakes", false, now)
	}
	r.news(now)
	if soon := now.Add(newsPause); r.ready("waits", now) || !r.ready("waits", soon) || r.ready("shakes", soon) {
		t.Error("not the one that waits, and soon")
	}
}

// Somebody who takes a VM off each time that it is attached does not make the interface flap every second.
func TestAVMThatIsTakenOffAgainAndAgainIsTriedLessOften(t *testing.T) {
	start := time.Unix(1000, 0)
	r := retries{}
	n := 0
	r.asleep("db1", true, start)
	for now := start; now.Before(start.Add(10 * time.Minute)); now = now.Add(100 * time.Millisecond) {
		if r.ready("db1", now) {
			n++
			r.succeeded("db1", now)
			r.asleep("db1", true, now)
		}
	}
	if n > 16 {
		t.Errorf("%d times in ten minutes", n)
	}
	// Once it has stayed for a while all is as at first.
	later := start.Add(time.Hour)
	r.succeeded("db1", later)
	r.asleep("db1", true, later.Add(2*settled))
	if !r.ready("db1", later.Add(2*settled)) {
		t.Error("a VM that had settled is not tried at once")
	}
	// A VM whose tap comes and goes costs the interface nothing.
	for i := range 10 {
		at := later.Add(time.Duration(i) * time.Second)
		r.succeeded("db1", at)
		r.asleep("db1", false, at)
		if !r.ready("db1", at.Add(firstPause)) {
			t.Error("a VM that restarts waits longer each time")
		}
	}
	r.failed("db2", false, later)
	if at := r.next("db2", later); !at.IsZero() {
		t.Errorf("the next try, within a second, is shown as %v", at)
	}
	r.failed("db2", false, later)
	if at := r.next("db2", later); at.Sub(later) != 2*firstPause {
		t.Errorf("the next try is in %v", at.Sub(later))
	}
	if r.again(later); !r.ready("db2", later) {
		t.Error("an operator asked for a try, and it is not made")
	}
}
