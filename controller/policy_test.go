package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/virtio"
)

func ptr[T any](v T) *T { return &v }

func TestPolicyPatchIsTakenOrRefusedWhole(t *testing.T) {
	for _, tc := range []struct {
		name string
		p    api.PolicyPatch
		ok   bool
	}{
		{"empty patch changes nothing", api.PolicyPatch{}, true},
		{"hold 0 is burst mode", api.PolicyPatch{HoldNS: ptr(int64(0))}, true},
		{"negative hold", api.PolicyPatch{HoldNS: ptr(int64(-1))}, false},
		{"hold beyond its bound", api.PolicyPatch{HoldNS: ptr(int64(time.Second))}, false},
		{"unknown profile", api.PolicyPatch{Profile: ptr(api.Profile("lro"))}, false},
		{"profile rsc", api.PolicyPatch{Profile: ptr(api.ProfileRSC)}, true},
		{"largest IP length", api.PolicyPatch{MaxBytes: ptr(65535)}, true},
		{"beyond the IP length", api.PolicyPatch{MaxBytes: ptr(65536)}, false},
		{"less than one segment", api.PolicyPatch{MaxBytes: ptr(100)}, false},
		{"one segment is no merging", api.PolicyPatch{MaxSegments: ptr(1)}, false},
		{"two segments", api.PolicyPatch{MaxSegments: ptr(2)}, true},
		{"too many ports", api.PolicyPatch{ExcludePorts: ptr(make65Ports())}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := api.BuiltinPolicy()
			got, err := applyPatch(base, tc.p)
			if tc.ok != (err == nil) {
				t.Fatalf("error = %v, want ok %t", err, tc.ok)
			}
			if err != nil && (!errors.Is(err, ErrUsage) || got.HoldNS != base.HoldNS || got.Profile != base.Profile) {
				t.Fatalf("refused patch: error %v, policy %+v", err, got)
			}
		})
	}
}

func make65Ports() []uint16 {
	p := make([]uint16, api.MaxExcludePorts+1)
	for i := range p {
		p[i] = uint16(i)
	}
	return p
}

func TestProfileInForceFollowsNegotiation(t *testing.T) {
	all := virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FRSCExt)
	for _, tc := range []struct {
		name    string
		profile api.Profile
		f       virtio.Features
		running bool
		want    api.Profile
		rule    flowtable.Profile
	}{
		{"gro by default", "gro", all, true, "gro", flowtable.GRO},
		{"rsc with RSC_EXT", "rsc", all, true, "rsc", flowtable.RSC},
		{"rsc without RSC_EXT falls back", "rsc", all &^ virtio.Mask(virtio.FRSCExt), true, "gro", flowtable.GRO},
		{"no GUEST_CSUM: off", "gro", virtio.Mask(virtio.FGuestTSO4), true, "off", flowtable.GRO},
		{"no TSO: off", "gro", virtio.Mask(virtio.FGuestCsum), true, "off", flowtable.GRO},
		{"guest not running: off", "gro", all, false, "off", flowtable.GRO},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := api.BuiltinPolicy()
			p.Profile = tc.profile
			got, note := effective(p, tc.f, tc.running)
			if got != tc.want {
				t.Errorf("effective = %q, want %q", got, tc.want)
			}
			if got != tc.profile && note == "" {
				t.Error("a profile that is not the one asked for needs a note")
			}
			if c := portConfig(p, tc.f); c.Profile != tc.rule {
				t.Errorf("flow table profile = %v, want %v", c.Profile, tc.rule)
			}
		})
	}
}

// What a VM on its own tap would not have merged anyway stays on the kernel's path.
func TestSteeringFollowsPolicyAndGuest(t *testing.T) {
	all := virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestTSO6)
	change := func(f func(*api.Policy)) api.Policy {
		p := api.BuiltinPolicy()
		f(&p)
		return p
	}
	uso := all | virtio.Mask(virtio.FGuestUSO4, virtio.FGuestUSO6)
	const steer = bpf.FlagSteer | bpf.FlagTCPOnly | bpf.FlagFailOpen
	for _, c := range []struct {
		name   string
		policy api.Policy
		guest  virtio.Features
		want   uint32
	}{
		{"all of its TCP", api.BuiltinPolicy(), all, steer},
		{"off", change(func(p *api.Policy) { p.Coalesce = false }), all, 0},
		{"no IPv4", change(func(p *api.Policy) { p.IPv4 = false }), all, steer | bpf.FlagNoV4},
		{"no family", change(func(p *api.Policy) { p.IPv4, p.IPv6 = false, false }), all, 0},
		{"a port", change(func(p *api.Policy) { p.ExcludePorts = []uint16{22} }), all, steer | bpf.FlagExcludes},
		{"no TSO6 in the guest", api.BuiltinPolicy(), all &^ virtio.Mask(virtio.FGuestTSO6), steer | bpf.FlagNoV6},
		{"no TSO in the guest", api.BuiltinPolicy(), virtio.Mask(virtio.FGuestCsum), 0},
		{"its UDP too", api.BuiltinPolicy(), uso, steer | bpf.FlagUDP4 | bpf.FlagUDP6},
		{"UDP off", change(func(p *api.Policy) { p.UDP = false }), uso, steer},
		{"UDP, no IPv4", change(func(p *api.Policy) { p.IPv4 = false }), uso, steer | bpf.FlagNoV4 | bpf.FlagUDP6},
		{"UDP, no IPv6", change(func(p *api.Policy) { p.IPv6 = false }), uso, steer | bpf.FlagNoV6 | bpf.FlagUDP4},
		{"UDP, coalescing off", change(func(p *api.Policy) { p.Coalesce = false }), uso, 0},
		{"UDP and no TCP", api.BuiltinPolicy(), uso &^ virtio.Mask(virtio.FGuestTSO4, virtio.FGuestTSO6), steer | bpf.FlagNoV4 | bpf.FlagNoV6 | bpf.FlagUDP4 | bpf.FlagUDP6},
		{"UDP without checksum offload", api.BuiltinPolicy(), uso &^ virtio.Mask(virtio.FGuestCsum), 0},
		{"no checksum offload in the guest", api.BuiltinPolicy(), all &^ virtio.Mask(virtio.FGuestCsum), 0},
	} {
		cfg, flags := tapRules(c.policy, c.guest)
		if flags != c.want {
			t.Errorf("%s: flags %#x, want %#x", c.name, flags, c.want)
		}
		if cfg.MaxFrame != 65535 || cfg.MaxSegments < 46 || cfg.MaxSegments > 1000 || cfg.Profile != flowtable.GRO {
			t.Errorf("%s: %+v", c.name, cfg)
		}
	}
}

// Whether datagrams are merged is told, and why not where the policy says so.
func TestWhetherDatagramsAreMergedIsTold(t *testing.T) {
	all := virtio.Mask(virtio.FGuestCsum, virtio.FGuestTSO4, virtio.FGuestUSO4, virtio.FGuestUSO6)
	for name, c := range map[string]struct {
		edit    func(*api.Policy)
		f       virtio.Features
		running bool
		merges  bool
		note    string
	}{
		"merged":             {func(*api.Policy) {}, all, true, true, ""},
		"switched off":       {func(p *api.Policy) { p.UDP = false }, all, true, false, ""},
		"all switched off":   {func(p *api.Policy) { p.Coalesce = false }, all, true, false, ""},
		"no driver":          {func(*api.Policy) {}, all, false, false, "the guest's driver has not started"},
		"no checksums":       {func(*api.Policy) {}, all &^ virtio.Mask(virtio.FGuestCsum), true, false, "the guest did not negotiate GUEST_CSUM"},
		"no USO":             {func(*api.Policy) {}, virtio.Mask(virtio.FGuestCsum), true, false, "the guest negotiated neither GUEST_USO4 nor GUEST_USO6"},
		"the other family's": {func(p *api.Policy) { p.IPv4 = false }, all &^ virtio.Mask(virtio.FGuestUSO6), true, false, "of the families that are on, the guest negotiated no GUEST_USO"},
	} {
		p := api.BuiltinPolicy()
		c.edit(&p)
		if merges, note := mergesUDP(p, c.f, c.running); merges != c.merges || note != c.note {
			t.Errorf("%s: %v, %q", name, merges, note)
		}
		cfg := portConfig(p, c.f)
		if rules := cfg.Coalesce && cfg.UDP && cfg.GuestCsum && (cfg.IPv4 && cfg.USO4 || cfg.IPv6 && cfg.USO6); c.running && rules != c.merges {
			t.Errorf("%s: told %v, the rules say %v", name, c.merges, rules)
		}
	}
}
