package api

import (
	"cmp"
	"slices"
	"time"
)

// BuiltinPolicy is what a VM gets when neither attach nor the operator's default says otherwise: lossless merging, held for at most 50 us.
func BuiltinPolicy() Policy {
	return Policy{
		Coalesce: true, IPv4: true, IPv6: true, Profile: ProfileGRO,
		HoldNS: (50 * time.Microsecond).Nanoseconds(), MaxBytes: 65535, MaxSegments: 0, ExcludePorts: []uint16{},
	}
}

// Over is base with the patch's fields. The ports are in order, each once.
func (p PolicyPatch) Over(base Policy) Policy {
	set(&base.Coalesce, p.Coalesce)
	set(&base.IPv4, p.IPv4)
	set(&base.IPv6, p.IPv6)
	set(&base.Profile, p.Profile)
	set(&base.HoldNS, p.HoldNS)
	set(&base.MaxBytes, p.MaxBytes)
	set(&base.MaxSegments, p.MaxSegments)
	if p.ExcludePorts != nil {
		base.ExcludePorts = slices.Clone(*p.ExcludePorts)
		slices.Sort(base.ExcludePorts)
		base.ExcludePorts = slices.Compact(base.ExcludePorts)
	}
	return base
}

// Merge is the patch p, and of other what p leaves alone.
func (p PolicyPatch) Merge(other PolicyPatch) PolicyPatch {
	return PolicyPatch{
		Coalesce: cmp.Or(p.Coalesce, other.Coalesce), IPv4: cmp.Or(p.IPv4, other.IPv4), IPv6: cmp.Or(p.IPv6, other.IPv6),
		Profile: cmp.Or(p.Profile, other.Profile), HoldNS: cmp.Or(p.HoldNS, other.HoldNS), MaxBytes: cmp.Or(p.MaxBytes, other.MaxBytes),
		MaxSegments: cmp.Or(p.MaxSegments, other.MaxSegments), ExcludePorts: cmp.Or(p.ExcludePorts, other.ExcludePorts),
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
		Coalesce: &p.Coalesce, IPv4: &p.IPv4, IPv6: &p.IPv6, Profile: &p.Profile, HoldNS: &p.HoldNS, MaxBytes: &p.MaxBytes,
		MaxSegments: &p.MaxSegments, ExcludePorts: &p.ExcludePorts,
	}
}
