package controller

import (
	"fmt"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// applyPatch returns base with the patch's fields, or an ErrUsage that names the field and its bounds.
func applyPatch(base api.Policy, p api.PolicyPatch) (api.Policy, error) {
	out := p.Over(base)
	if err := out.Check(); err != nil {
		return base, fmt.Errorf("policy: %w: %w", ErrUsage, err)
	}
	return out, nil
}

// effective tells which profile a policy has in force for the features a guest negotiated, and why when it is not the one asked.
func effective(p api.Policy, f virtio.Features, running bool) (profile api.Profile, note string) {
	switch {
	case !p.Coalesce:
		return api.ProfileOff, ""
	case !running:
		return api.ProfileOff, "the guest's driver has not started"
	case !f.Has(virtio.FGuestCsum):
		return api.ProfileOff, "the guest did not negotiate GUEST_CSUM"
	case !f.Has(virtio.FGuestTSO4) && !f.Has(virtio.FGuestTSO6):
		return api.ProfileOff, "the guest negotiated neither GUEST_TSO4 nor GUEST_TSO6"
	case p.Profile == api.ProfileRSC && !f.Has(virtio.FRSCExt):
		return api.ProfileGRO, "profile rsc needs RSC_EXT, which the guest did not negotiate"
	}
	return p.Profile, ""
}

// mergesUDP tells whether a policy merges datagrams for the features that a guest negotiated, and why not where it is to.
func mergesUDP(p api.Policy, f virtio.Features, running bool) (merges bool, note string) {
	switch {
	case !p.Coalesce || !p.UDP:
		return false, ""
	case !running:
		return false, "the guest's driver has not started"
	case !f.Has(virtio.FGuestCsum):
		return false, "the guest did not negotiate GUEST_CSUM"
	case !f.Has(virtio.FGuestUSO4) && !f.Has(virtio.FGuestUSO6):
		return false, "the guest negotiated neither GUEST_USO4 nor GUEST_USO6"
	case !(p.IPv4 && f.Has(virtio.FGuestUSO4)) && !(p.IPv6 && f.Has(virtio.FGuestUSO6)):
		return false, "of the families that are on, the guest negotiated no GUEST_USO"
	}
	return true, ""
}

// portConfig turns a policy and the negotiated features into the flow table's rules for one port.
func portConfig(p api.Policy, f virtio.Features) flowtable.PortConfig {
	c := flowtable.DefaultPortConfig()
	c.Coalesce, c.IPv4, c.IPv6 = p.Coalesce, p.IPv4, p.IPv6
	c.Hold, c.Adaptive = time.Duration(p.HoldNS), p.HoldAdaptive
	c.MaxBytes, c.MaxSegments = p.MaxBytes, p.MaxSegments
	c.ExcludePorts = p.ExcludePorts
	c.GuestCsum = f.Has(virtio.FGuestCsum)
	c.TSO4, c.TSO6 = f.Has(virtio.FGuestTSO4), f.Has(virtio.FGuestTSO6)
	c.UDP, c.USO4, c.USO6 = p.UDP, f.Has(virtio.FGuestUSO4), f.Has(virtio.FGuestUSO6)
	c.ECN, c.RSCExt = f.Has(virtio.FGuestECN), f.Has(virtio.FRSCExt)
	c.Profile = flowtable.GRO
	if p.Profile == api.ProfileRSC && c.RSCExt {
		c.Profile = flowtable.RSC
	}
	return c
}
