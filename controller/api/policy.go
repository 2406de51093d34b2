package api

import "slices"

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
