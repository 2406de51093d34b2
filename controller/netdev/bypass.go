package netdev

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bypassed tells what of the kernel's path from an uplink to a VM's tap would not see the frames any more, when XDP takes
// them at the uplink and they are sent to the tap directly: one sentence each, none when nothing would be missed. ports is
// the bridge between the two (FindPorts), nil when there is none. It looks in the network namespace of the calling thread
// (also for netfilter), and it changes nothing, but the kernel may load nf_tables to answer.
//
// What only concerns the VM's own frames (the ingress of the tap, the egress of the uplink) is not listed: those stay on the
// kernel's path. Legacy iptables and ebtables are found by their rules; a legacy policy without a rule is not seen.
func Bypassed(uplink, tap int, ports *BridgePorts) (out []string, err error) {
	err = with(func(h *Handle) error {
		w := way{h: h, ports: ports}
		if w.in, err = h.names(uplink); err != nil {
			return err
		}
		if ports != nil && ports.Port.Index != uplink {
			w.in[ports.Port.Index] = ports.Port.Name // the VLAN device
		}
		if w.out, err = h.names(tap); err != nil {
			return err
		}
		for _, look := range []func() ([]string, error){w.bridge, w.tc, w.nftables, w.legacy} {
			more, err := look()
			if err != nil {
				return err
			}
			out = append(out, more...)
		}
		return nil
	})
	return out, err
}

func (h *Handle) names(index int) (map[int]string, error) {
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return nil, linkError(fmt.Sprintf("index %d", index), err)
	}
	return map[int]string{index: l.Attrs().Name}, nil
}

// way is the kernel's path that is bypassed.
type way struct {
	h       *Handle
	in, out map[int]string // interfaces that the frames come in and go out by: names by ifindex
	ports   *BridgePorts
}

// bridge lists the settings of the bridge that keep or change frames.
func (w *way) bridge() (out []string, err error) {
	b := w.ports
	if b == nil {
		return nil, nil
	}
	say := func(format string, args ...any) {
		out = append(out, fmt.Sprintf("bridge %s: ", b.Bridge)+fmt.Sprintf(format, args...))
	}
	for _, p := range []BridgePort{b.Port, b.Tap} {
		if !p.Forwarding {
			say("port %s is not forwarding, so the bridge drops the frames", p.Name)
		}
	}
	if b.Port.Isolated && b.Tap.Isolated {
		say("ports %s and %s are both isolated, so the bridge keeps the frames from the VM", b.Port.Name, b.Tap.Name)
	}
	if b.Port.Locked {
		say("port %s is locked, so the bridge drops the frames of senders it has no entry for", b.Port.Name)
	}
	switch {
	case !b.VLANFiltering:
	case b.VID == 0:
		say("port %s has no VLAN for untagged frames (PVID), so the bridge drops them", b.Port.Name)
	case !b.Port.Member:
		say("port %s does not belong to VLAN %d, so the bridge drops the frames", b.Port.Name, b.VID)
	case !b.Tap.Member:
		say("port %s does not belong to VLAN %d, so the bridge keeps the frames from the VM", b.Tap.Name, b.VID)
	case !b.Tap.Untagged:
		say("port %s gives the VM the frames of VLAN %d with their tag", b.Tap.Name, b.VID)
	}
	return out, nil
}

// tc lists filters and programs at the ingress of the uplink's side and at the egress of the tap.
func (w *way) tc() (out []string, err error) {
	for _, side := range []struct {
		links  map[int]string
		name   string
		hook   tcHook
		misses string
	}{
		{w.in, "ingress", tcIngress, "would not see the frames"},
		{w.out, "egress", tcEgress, "would see merged frames or none, not those of the wire"},
	} {
		for index, dev := range side.links {
			found, err := w.h.tcUsers(index, side.hook)
			if err != nil {
				return nil, fmt.Errorf("interface: %s: TC %s: %w", dev, side.name, err)
			}
			for _, f := range found {
				out = append(out, fmt.Sprintf("TC %s of %s: %s %s", side.name, dev, f, side.misses))
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// nftables lists base chains that have rules, or drop by policy, where the frames would come by.
func (w *way) nftables() (out []string, err error) {
	chains, err := baseChains()
	if err != nil {
		return nil, err
	}
	ip4, ip6 := w.callsNetfilter()
	for _, c := range chains {
		if c.rules == 0 && !c.drops {
			continue
		}
		through := c.hook == hookPrerouting || c.hook == hookForward || c.hook == hookPostrouting
		ingress := c.family == familyNetdev && c.hook == netdevIngress || c.family == familyInet && c.hook == inetIngress
		egress := c.family == familyNetdev && c.hook == netdevEgress
		switch {
		case c.family == familyBridge && through && w.ports != nil:
			out = append(out, fmt.Sprintf("nftables: %s would not see the frames that bridge %s forwards", c, w.ports.Bridge))
		case ingress && c.on(w.in):
			out = append(out, fmt.Sprintf("nftables: %s would not see the frames that come in by %s", c, strings.Join(c.devices, ", ")))
		case egress && c.on(w.out):
			out = append(out, fmt.Sprintf("nftables: %s would see merged frames or none, not those of the wire", c))
		case through && (ip4 && c.family == familyIPv4 || ip6 && c.family == familyIPv6 || (ip4 || ip6) && c.family == familyInet):
			out = append(out, fmt.Sprintf("nftables: %s would not see the packets that bridge %s hands to netfilter (bridge-nf-call-iptables)", c, w.ports.Bridge))
		}
	}
	return out, nil
}

// legacy lists the tables of iptables and ebtables that have rules.
func (w *way) legacy() (out []string, err error) {
	if w.ports == nil {
		return nil, nil
	}
	for _, t := range ebTables() {
		out = append(out, fmt.Sprintf("ebtables: the rules of table %s would not see the frames that bridge %s forwards", t, w.ports.Bridge))
	}
	ip4, ip6 := w.callsNetfilter()
	for _, f := range []struct {
		on     bool
		tool   string
		family int
	}{{ip4, "iptables", unix.AF_INET}, {ip6, "ip6tables", unix.AF_INET6}} {
		if !f.on {
			continue
		}
		for _, t := range ipTables(f.family) {
			out = append(out, fmt.Sprintf("%s: the rules of table %s would not see the packets that bridge %s hands to netfilter (bridge-nf-call-%s)",
				f.tool, t, w.ports.Bridge, f.tool))
		}
	}
	return out, nil
}

// callsNetfilter tells whether the bridge's IPv4 and IPv6 packets go through netfilter's IP hooks: br_netfilter is there,
// and either its sysctl or the bridge's own setting is on (net/bridge/br_netfilter_hooks.c br_nf_pre_routing).
func (w *way) callsNetfilter() (ip4, ip6 bool) {
	if w.ports == nil {
		return false, false
	}
	const dir = "/proc/sys/net/bridge/bridge-nf-call-"
	on := func(name string, own bool) bool {
		b, err := os.ReadFile(dir + name) // of the calling thread's namespace
		return err == nil && (own || strings.TrimSpace(string(b)) != "0")
	}
	return on("iptables", w.ports.CallIPTables), on("ip6tables", w.ports.CallIP6Tables)
}
