package api

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Bounds of a VM's rates and bursts. Below the least rate a frame of 1,514 bytes takes longer than a second and a half, beyond the
// most no NIC is.
const (
	MinRate  = 8_000             // bits a second
	MaxRate  = 1_000_000_000_000 // 1 Tbit/s
	MinBurst = 1_514             // bytes
	MaxBurst = 1 << 30
)

// BurstFor is the burst of a rate for which none was named: 10 ms of it, two superframes at least.
func BurstFor(rate, burst uint64) uint64 {
	if burst != 0 {
		return burst
	}
	return min(max(rate/8/100, 128<<10), MaxBurst)
}

func checkRate(name string, rate, burst uint64) error {
	switch {
	case rate == 0 && burst == 0:
		return nil
	case rate < MinRate || rate > MaxRate:
		return fmt.Errorf("%s %dbit: use %s to %s a second, or none", name, rate, rateText(MinRate), rateText(MaxRate))
	case burst != 0 && (burst < MinBurst || burst > MaxBurst):
		return fmt.Errorf("%s: burst of %d bytes: use %d to %d bytes", name, burst, MinBurst, MaxBurst)
	}
	return nil
}

// ParseRate reads RATE[/BURST] as it is typed: 100Mbit, 1.5Gbit/256KiB, or none. A rate has a unit (bit, kbit, Mbit, Gbit, Tbit; k is
// 1,000), a burst one of bytes (B, kB, MB, KiB, MiB) or none; both are whole numbers of bits and bytes. Zero is no rate: none is none.
func ParseRate(s string) (rate, burst uint64, err error) {
	if s == "none" {
		return 0, 0, nil
	}
	word, size, has := strings.Cut(s, "/")
	if rate, err = quantity(word, rateUnits()); err != nil {
		return 0, 0, fmt.Errorf("%q: %w: say for example 100Mbit, 1.5Gbit, 1Gbit/256KiB or none", s, err)
	}
	if has {
		if burst, err = quantity(size, sizeUnits()); err == nil && burst == 0 {
			err = fmt.Errorf("a burst of nothing")
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%q: %w: say for example 1Gbit/256KiB, or leave the burst out", s, err)
		}
	}
	if rate == 0 {
		return 0, 0, fmt.Errorf("%q: nothing could pass: say none for no limit, or detach the VM", s)
	}
	if err := checkRate("rate", rate, burst); err != nil {
		return 0, 0, errors.New(strings.TrimPrefix(err.Error(), "rate ")) // whose it is, the caller says
	}
	return rate, burst, nil
}

type unit struct {
	name string
	of   uint64
}

// rateUnits are in the order in which a rate is written: the largest that makes a short number first.
func rateUnits() []unit {
	return []unit{{"Tbit", 1e12}, {"Gbit", 1e9}, {"Mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}
}

func sizeUnits() []unit {
	return []unit{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}, {"", 1}}
}

// quantity reads a number with a unit, in whichever case, exactly.
func quantity(s string, units []unit) (uint64, error) {
	at := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if at < 0 {
		at = len(s)
	}
	number, name := s[:at], s[at:]
	if len(number) == 0 || len(number) > 24 || strings.Count(number, ".") > 1 || strings.Trim(number, ".") != number {
		return 0, fmt.Errorf("no number")
	}
	for _, u := range units {
		if !strings.EqualFold(u.name, name) {
			continue
		}
		n, ok := new(big.Rat).SetString(number)
		if !ok {
			return 0, fmt.Errorf("no number")
		}
		n.Mul(n, new(big.Rat).SetInt(new(big.Int).SetUint64(u.of)))
		if !n.IsInt() || !n.Num().IsUint64() {
			return 0, fmt.Errorf("no whole number of bits or bytes, or too large a one")
		}
		return n.Num().Uint64(), nil
	}
	if name == "" {
		return 0, fmt.Errorf("no unit")
	}
	return 0, fmt.Errorf("no unit is called %q", name)
}

// RateText writes a rate and its burst as ParseRate reads them.
func RateText(rate, burst uint64) string {
	switch {
	case rate == 0:
		return "none"
	case burst == 0:
		return rateText(rate)
	}
	return rateText(rate) + "/" + unitText(burst, sizeUnits()[:3], "B")
}

func rateText(rate uint64) string { return unitText(rate, rateUnits(), "bit") }

// unitText writes a number with the largest unit of which it is a whole multiple, or of thousandths.
func unitText(n uint64, units []unit, least string) string {
	for _, u := range units {
		if n >= u.of && n%u.of == 0 {
			return strconv.FormatUint(n/u.of, 10) + u.name
		}
		if n >= u.of && u.of%1000 == 0 && n%(u.of/1000) == 0 {
			return strings.TrimRight(fmt.Sprintf("%d.%03d", n/u.of, n%u.of/(u.of/1000)), "0") + u.name
		}
	}
	return strconv.FormatUint(n, 10) + least
}
