package netdev

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Behind a VM's bridge the one interface is found by which the wire comes in, with the tag that frames carry there. Hosts that leave a choice,
// or none, give it back.
func TestTheWayInBehindABridge(t *testing.T) {
	const bridge = 1
	tap := dev{index: 2, name: "tap100i0", kind: "tun", tunType: unix.IFF_TAP, vnetHdr: true, master: bridge}
	firewall := dev{index: 3, name: "fwpr101p0", kind: "veth", lower: 4, master: bridge}
	for name, tc := range map[string]struct {
		devs []dev
		vlan uint16
		want []WayIn
	}{
		"Proxmox VE's vmbr0": {devs: []dev{tap, firewall, {index: 5, name: "eno1", bus: true, master: bridge}}, want: []WayIn{{"eno1", 0}}},
		"a VLAN-aware one":   {devs: []dev{tap, {index: 5, name: "eno1", bus: true, master: bridge}}, vlan: 100, want: []WayIn{{"eno1", 100}}},
		"vmbr0v100": {devs: []dev{tap, {index: 5, name: "eno1", bus: true}, {index: 6, name: "eno1.100", kind: "vlan", vlan: 100, lower: 5, master: bridge}},
			want: []WayIn{{"eno1", 100}}},
		"two NICs": {devs: []dev{{index: 5, name: "eno1", bus: true, master: bridge}, {index: 6, name: "eno2", bus: true, master: bridge}},
			want: []WayIn{{"eno1", 0}, {"eno2", 0}}},
		"a bond":    {devs: []dev{tap, firewall, {index: 5, name: "bond0", kind: "bond", mode: 4, master: bridge}, {index: 6, name: "eno1", bus: true, master: 5}}, want: []WayIn{{"bond0", 0}}},
		"VMs alone": {devs: []dev{tap}},
	} {
		s := linksOf(append(tc.devs, dev{index: bridge, name: "vmbr0", kind: "bridge"})...)
		var got []WayIn
		for _, w := range s.bestWaysIn(s[bridge], tc.vlan) {
			got = append(got, WayIn{w.link.name, w.vlan})
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
