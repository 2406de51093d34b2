package user

import (
	"os"
	"testing"
	"time"
)

// A slow machine is not the peer's fault: what an operation may cost grows with what it costs there anyway.
func TestASlowMachineIsNotBlamedOnThePeer(t *testing.T) {
	for _, c := range []struct {
		took   time.Duration
		factor int64
	}{
		{300 * time.Nanosecond, 1}, // a machine of today
		{time.Microsecond, 1},
		{15 * time.Microsecond, 12}, // an emulated one
		{40 * time.Microsecond, 32},
		{time.Hour, meterMaxFactor},
	} {
		if f := factorOf(int64(c.took)); f != c.factor {
			t.Errorf("%v: %d times as slow", c.took, f)
		}
	}
	for _, factor := range []int64{0, 1, 12} {
		m := Meter{factor: factor}
		scale := time.Duration(max(factor, 1))
		for range 100000 {
			m.add(scale*15*time.Microsecond - m.scaled(meterAllowance))
		}
		m.add(scale * 40 * time.Millisecond)
		if m.spare() {
			t.Errorf("factor %d: an honest peer is taken for a costly one", factor)
		}
		for range 100 {
			m.add(scale * time.Millisecond)
		}
		if !m.spare() {
			t.Errorf("factor %d: a costly peer is never found out", factor)
		}
	}
}

// A machine that slept for an hour in the middle of a call does not make its peer costly for ever.
func TestADebtIsPaidBack(t *testing.T) {
	var m Meter
	m.add(time.Hour)
	n := 0
	for n < 100000 && m.spare() {
		n++
	}
	if want := int((meterMost - meterCredit) / meterAllowance); n != want {
		t.Errorf("spared %d times, %d pay it back", n, want)
	}
}

// What is compared with is measured once for all, and leaves no descriptor behind.
func TestTheMachineIsMeasuredForTheMeters(t *testing.T) {
	before := descriptors(t)
	for _, m := range NewMeters(3) {
		if m.factor < 1 || m.factor > meterMaxFactor {
			t.Errorf("factor %d", m.factor)
		}
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
