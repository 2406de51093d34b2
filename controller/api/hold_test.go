package api

import (
	"testing"
	"time"
)

func TestHoldsAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]struct {
		hold   time.Duration
		adapts bool
	}{
		"0s": {0, false}, "50us": {50 * time.Microsecond, false}, "10ms": {10 * time.Millisecond, false}, "adaptive": {AdaptiveHold, true},
		"adaptive:1ms": {time.Millisecond, true}, "adaptive:100us": {100 * time.Microsecond, true},
	} {
		hold, adapts, err := ParseHold(text)
		if hold != want.hold || adapts != want.adapts || err != nil {
			t.Errorf("%s: %v, %v, %v", text, hold, adapts, err)
		}
		if got := HoldText(hold, adapts); got != text {
			t.Errorf("%s is written %s", text, got)
		}
	}
	for _, text := range []string{"", "soon", "50", "adaptive:", "adaptive:0", "adaptive:-1us", "adaptive:50", "adaptive 1ms", "Adaptive", "adaptive:adaptive"} {
		if hold, adapts, err := ParseHold(text); err == nil {
			t.Errorf("%q: %v, %v", text, hold, adapts)
		}
	}
}

// A client that knows fixed holds only gets what it asks for, and one that asks for another kind gets a length that fits.
func TestALengthAloneFixesTheHold(t *testing.T) {
	yes, no, ns := true, false, int64(20_000)
	base := BuiltinPolicy()
	fixed := PolicyPatch{HoldNS: &ns}.Over(base)
	if fixed.HoldNS != ns || fixed.HoldAdaptive {
		t.Errorf("a length alone: %+v", fixed)
	}
	for name, c := range map[string]struct {
		patch PolicyPatch
		from  Policy
		want  string
	}{
		"nothing":                         {PolicyPatch{}, base, "adaptive"},
		"adaptive again":                  {PolicyPatch{HoldAdaptive: &yes}, fixed, "adaptive"},
		"adaptive and a bound":            {PolicyPatch{HoldAdaptive: &yes, HoldNS: &ns}, base, "adaptive:20us"},
		"adaptive as it is":               {PolicyPatch{HoldAdaptive: &yes}, PolicyPatch{HoldAdaptive: &yes, HoldNS: &ns}.Over(base), "adaptive:20us"},
		"fixed":                           {PolicyPatch{HoldAdaptive: &no}, base, "50us"},
		"fixed as it is":                  {PolicyPatch{HoldAdaptive: &no}, fixed, "20us"},
		"a whole policy":                  {base.Patch(), fixed, "adaptive"},
		"a length beside a file's policy": {PolicyPatch{HoldNS: &ns}.Merge(base.Patch()), base, "20us"},
		"a file's policy":                 {PolicyPatch{IPv4: &no}.Merge(fixed.Patch()), base, "20us"},
	} {
		if got := c.patch.Over(c.from).Hold(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if err := (PolicyPatch{HoldAdaptive: &yes, HoldNS: new(int64)}).Over(base).Check(); err == nil {
		t.Error("an adaptive hold of 0 was taken")
	}
}
