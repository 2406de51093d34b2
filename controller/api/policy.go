package api

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bounds of what an operator may ask of a policy.
const (
	MaxHold         = 10 * time.Millisecond // beyond it TCP's own timers suffer
	AdaptiveHold    = MaxHold               // the bound of an adaptive hold that was given none
	FixedHold       = 50 * time.Microsecond // a hold that is fixed and was given no length
	MinMaxBytes     = 1500
	MaxMaxBytes     = 65535 // IP length
	MaxExcludePorts = 64
)

// BuiltinPolicy is what a VM gets when neither attach nor the operator's default says otherwise: lossless merging, with a hold that finds its length by itself.
func BuiltinPolicy() Policy {
	return Policy{
		Coalesce: true, IPv4: true, IPv6: true, UDP: true, Profile: ProfileGRO,
		HoldNS: AdaptiveHold.Nanoseconds(), HoldAdaptive: true, MaxBytes: 65535, MaxSegments: 0, ExcludePorts: []uint16{}, Host: true,
	}
}

// Check is nil, or names the first field that is out of its bounds, and these.
func (p Policy) Check() error {
	switch {
	case !slices.Contains(Profiles, p.Profile):
		return fmt.Errorf("profile %q: use gro or rsc", p.Profile)
	case p.HoldNS < 0 || p.HoldNS > MaxHold.Nanoseconds():
		return fmt.Errorf("hold %s: use 0 to %s", time.Duration(p.HoldNS), MaxHold)
	case p.HoldAdaptive && p.HoldNS == 0:
		return errors.New("hold adaptive:0: say 0, or a bound above it")
	case p.MaxBytes < MinMaxBytes || p.MaxBytes > MaxMaxBytes:
		return fmt.Errorf("max-bytes %d: use %d to %d (IP length)", p.MaxBytes, MinMaxBytes, MaxMaxBytes)
	case p.MaxSegments < 0 || p.MaxSegments == 1 || p.MaxSegments > MaxMaxBytes:
		return fmt.Errorf("max-segments %d: use 0 (no limit) or 2 to %d", p.MaxSegments, MaxMaxBytes)
	case len(p.ExcludePorts) > MaxExcludePorts:
		return fmt.Errorf("exclude-port: %d ports: at most %d", len(p.ExcludePorts), MaxExcludePorts)
	case slices.Contains(p.ExcludePorts, 0):
		return errors.New("exclude-port 0: use 1 to 65535")
	}
	if err := checkRate("rate-tx", p.RateTx, p.BurstTx); err != nil {
		return err
	}
	return checkRate("rate-rx", p.RateRx, p.BurstRx)
}

// Over is base with the patch's fields. The ports are in order, each once.
func (p PolicyPatch) Over(base Policy) Policy {
	set(&base.Coalesce, p.Coalesce)
	set(&base.IPv4, p.IPv4)
	set(&base.IPv6, p.IPv6)
	set(&base.UDP, p.UDP)
	set(&base.Profile, p.Profile)
	p.hold(&base)
	set(&base.MaxBytes, p.MaxBytes)
	set(&base.MaxSegments, p.MaxSegments)
	set(&base.Isolate, p.Isolate)
	set(&base.Host, p.Host)
	set(&base.RateTx, p.RateTx)
	set(&base.BurstTx, p.BurstTx)
	set(&base.RateRx, p.RateRx)
	set(&base.BurstRx, p.BurstRx)
	if p.ExcludePorts != nil {
		base.ExcludePorts = slices.Clone(*p.ExcludePorts)
		slices.Sort(base.ExcludePorts)
		base.ExcludePorts = slices.Compact(base.ExcludePorts)
	}
	return base
}

// Merge is the patch p, and of other what p leaves alone.
func (p PolicyPatch) Merge(other PolicyPatch) PolicyPatch {
	if p.HoldNS == nil && p.HoldAdaptive == nil { // they belong together
		p.HoldNS, p.HoldAdaptive = other.HoldNS, other.HoldAdaptive
	}
	return PolicyPatch{
		Coalesce: cmp.Or(p.Coalesce, other.Coalesce), IPv4: cmp.Or(p.IPv4, other.IPv4), IPv6: cmp.Or(p.IPv6, other.IPv6), UDP: cmp.Or(p.UDP, other.UDP),
		Profile: cmp.Or(p.Profile, other.Profile), HoldNS: p.HoldNS, HoldAdaptive: p.HoldAdaptive, MaxBytes: cmp.Or(p.MaxBytes, other.MaxBytes),
		MaxSegments: cmp.Or(p.MaxSegments, other.MaxSegments), ExcludePorts: cmp.Or(p.ExcludePorts, other.ExcludePorts),
		Isolate: cmp.Or(p.Isolate, other.Isolate), Host: cmp.Or(p.Host, other.Host),
		RateTx: cmp.Or(p.RateTx, other.RateTx), BurstTx: cmp.Or(p.BurstTx, other.BurstTx),
		RateRx: cmp.Or(p.RateRx, other.RateRx), BurstRx: cmp.Or(p.BurstRx, other.BurstRx),
	}
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Patch is the patch that makes this policy of any other.
func (p Policy) Patch() PolicyPatch {
	return PolicyPatch{
		Coalesce: &p.Coalesce, IPv4: &p.IPv4, IPv6: &p.IPv6, UDP: &p.UDP, Profile: &p.Profile, HoldNS: &p.HoldNS, HoldAdaptive: &p.HoldAdaptive, MaxBytes: &p.MaxBytes,
		MaxSegments: &p.MaxSegments, ExcludePorts: &p.ExcludePorts, Isolate: &p.Isolate, Host: &p.Host,
		RateTx: &p.RateTx, BurstTx: &p.BurstTx, RateRx: &p.RateRx, BurstRx: &p.BurstRx,
	}
}
