package api

import (
	"strings"
	"testing"
)

func TestARateIsReadAsItIsTyped(t *testing.T) {
	for s, want := range map[string][2]uint64{
		"none": {}, "100Mbit": {100_000_000, 0}, "1.5gbit": {1_500_000_000, 0}, "8000bit": {8000, 0}, "0.008Mbit": {8000, 0}, "1Tbit": {MaxRate, 0},
		"1Gbit/256KiB": {1_000_000_000, 256 << 10}, "1Gbit/64kB": {1_000_000_000, 64_000}, "10Mbit/1514": {10_000_000, 1514}, "33.333333Mbit": {33_333_333, 0}, "10Mbit/1GiB": {10_000_000, MaxBurst},
	} {
		rate, burst, err := ParseRate(s)
		if err != nil || rate != want[0] || burst != want[1] {
			t.Errorf("%s: %d/%d, %v", s, rate, burst, err)
		}
		r, b, err := ParseRate(RateText(rate, burst))
		if err != nil || r != rate || b != burst {
			t.Errorf("%s: written %s, read %d/%d, %v", s, RateText(rate, burst), r, b, err)
		}
	}
}

// A rate that lets nothing pass, that no NIC has, or that is not one is refused in words that say what can be had.
func TestAWrongRateIsRefused(t *testing.T) {
	for s, says := range map[string]string{
		"0": "no unit", "0bit": "none for no limit", "1bit": "8kbit to 1Tbit", "7999bit": "8kbit to 1Tbit", "1000Tbit": "8kbit to 1Tbit", "1000000000000000bit": "8kbit to 1Tbit",
		"100": "100Mbit", "": "no number", "Mbit": "no number", "-1Mbit": "no number", "1.Mbit": "no number", "1..5Mbit": "no number", "1e9bit": "no unit", "100Mbps": "no unit",
		"0.5bit": "whole", "99999999999999999999999Tbit": "too large", "1Gbit/0": "nothing", "1Gbit/": "no number", "1Gbit/1B": "1514", "1Gbit/2GiB": "1073741824", "1Gbit/1Gbit": "no unit",
		"1Gbit/1.3B": "whole", "１Gbit": "no number",
	} {
		if _, _, err := ParseRate(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q in it", s, err, says)
		}
	}
}

func TestABurstFollowsTheRate(t *testing.T) {
	for rate, want := range map[uint64]uint64{MinRate: 128 << 10, 1_000_000_000: 1_250_000, MaxRate: MaxBurst} {
		if got := BurstFor(rate, 0); got != want {
			t.Errorf("%d: %d", rate, got)
		}
	}
	if BurstFor(MinRate, 2000) != 2000 {
		t.Error("a burst that is named is not taken")
	}
}
