package api

import (
	"fmt"
	"strings"
)

// Differences are the ways in which a VM would be attached otherwise, each "name: was -> will be" with the name of attach's flag. A tap's
// name is none: a VM is found behind another one by its address, and was then no longer taken on the operator's word. The policy
// and the addresses are left out: they change while the VM runs.
func (r *AttachRequest) Differences(want *AttachRequest) []string {
	return changes([]change{
		{"iface", r.Iface, want.Iface}, {"mac", strings.ToLower(r.MAC), strings.ToLower(want.MAC)}, {"vlan", r.VLAN, want.VLAN},
		{"vhost-user", r.VhostUser, want.VhostUser}, {"connect", r.Connect, want.Connect}, {"domain", r.Domain, want.Domain},
		{"bypass-filters", r.Bypass, want.Bypass}, {"allow-spoof", r.AllowSpoof, want.AllowSpoof},
		{"any-memory", r.AnyMemory, want.AnyMemory}, {"mtu", r.MTU, want.MTU}, {"fix-offloads", r.FixOffloads, want.FixOffloads},
		{"socket-mode", r.SocketMode, want.SocketMode}, {"socket-owner", r.SocketOwner, want.SocketOwner},
		{"xsk-map", r.XSKMap, want.XSKMap}, {"queue", QueuesText(r.Queues), QueuesText(want.Queues)},
	})
}

// Differences are the fields of a policy that want has otherwise, each "name: was -> will be" with the name of the policy's flag.
func (p Policy) Differences(want Policy) []string {
	return changes([]change{
		{"coalesce", p.Coalesce, want.Coalesce}, {"ipv4", p.IPv4, want.IPv4}, {"ipv6", p.IPv6, want.IPv6}, {"udp", p.UDP, want.UDP}, {"profile", p.Profile, want.Profile},
		{"hold", p.Hold(), want.Hold()}, {"max-bytes", p.MaxBytes, want.MaxBytes},
		{"max-segments", p.MaxSegments, want.MaxSegments}, {"exclude-ports", fmt.Sprint(p.ExcludePorts), fmt.Sprint(want.ExcludePorts)},
		{"isolate", p.Isolate, want.Isolate}, {"host", p.Host, want.Host},
		{"rate-tx", RateText(p.RateTx, p.BurstTx), RateText(want.RateTx, want.BurstTx)}, {"rate-rx", RateText(p.RateRx, p.BurstRx), RateText(want.RateRx, want.BurstRx)},
	})
}

// change is a field as it is and as it is to be.
type change struct {
	name      string
	was, want any
}

// changes are those of the fields that differ, in words.
func changes(fields []change) (out []string) {
	text := func(v any) string {
		if v == "" {
			return "none"
		}
		return fmt.Sprint(v)
	}
	for _, f := range fields {
		if f.was != f.want {
			out = append(out, fmt.Sprintf("%s: %s -> %s", f.name, text(f.was), text(f.want)))
		}
	}
	return out
}
