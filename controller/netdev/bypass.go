package netdev

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Rules are the filters of a namespace that can touch frames of any interface, as they are at one moment.
type Rules struct {
	chains           []baseChain
	ebtables         []string // tables with rules
	iptables         []string
	ip6tables        []string
	ours             []uint32 // BPF programs that no frame of a VM on a tap misses, by the kernel's numbers
	toIP4, toIP6     bool     // br_netfilter is there; and its sysctl is on:
	sysctl4, sysctl6 bool
}

// RuleReader reads rules again and again. It is made once, because what is built into the kernel takes a while to find out.
type RuleReader struct {
	builtIn []string // tables of ebtables
	// Ours, if set, tells the kernel's numbers of TC programs that no frame of a VM on a tap misses: without CAP_SYS_ADMIN their names are not told.
	Ours func() []uint32
}

// NewRuleReader makes one.
func NewRuleReader() *RuleReader {
	r := &RuleReader{}
	for _, t := range ebtablesTables {
		if builtIn("ebtable_"+t.name, "BRIDGE_EBT_"+t.option) {
			r.builtIn = append(r.builtIn, t.name)
		}
	}
	return r
}

// Read reads the rules in the network namespace of the calling thread. It changes nothing, but the kernel may load nf_tables
// to answer, and makes the empty tables of an ebtables that is built into it.
func (r *RuleReader) Read() (*Rules, error) {
	out := &Rules{ebtables: ebTables(r.builtIn), iptables: ipTables(unix.AF_INET), ip6tables: ipTables(unix.AF_INET6)}
	if r.Ours != nil {
		out.ours = r.Ours()
	}
	out.sysctl4, out.toIP4 = callsNetfilter("iptables")
	out.sysctl6, out.toIP6 = callsNetfilter("ip6tables")
	var err error
	if out.chains, err = baseChains(); err != nil {
		return nil, err
	}
	return out, nil
}

// callsNetfilter reads a setting of br_netfilter, and whether the module is there.
func callsNetfilter(name string) (on, there bool) {
	b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + name) // of the calling thread's namespace
	return err == nil && strings.TrimSpace(string(b)) != "0", err == nil
}

// Bypassed tells what of the kernel's path from an uplink to a VM's tap would not see the frames any more, when XDP takes
// them at the uplink and they are sent to the tap directly: one sentence each, none when nothing would be missed. ports is
// the bridge between the two (FindPorts), nil when there is none, which is the first thing to say then: nothing gives the
// VM the uplink's frames but us.
//
// What only concerns the VM's own frames (the ingress of the tap, the egress of the uplink) is not listed: those stay on the
// kernel's path. Legacy iptables and ebtables are found by their rules; a legacy policy without a rule is not seen.
func (r *Rules) Bypassed(h *Handle, uplink, tap int, ports *BridgePorts) (out []string, err error) {
	w := way{h: h, rules: r, ports: ports}
	if w.in, err = h.names(uplink); err != nil {
		return nil, err
	}
	bond, err := h.BondOf(uplink)
	if err != nil {
		return nil, err
	}
	if bond != nil {
		for _, m := range bond.Members {
			w.in[m.Index] = m.Name
		}
	}
	if ports != nil && ports.Port.Index != uplink {
		w.in[ports.Port.Index] = ports.Port.Name // the VLAN device
	}
	if w.out, err = h.names(tap); err != nil {
		return nil, err
	}
	for _, look := range []func() ([]string, error){w.bridge, w.tc, w.nftables, w.legacy} {
		more, err := look()
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	if ports == nil {
		out = append([]string{h.unbridged(w.in[uplink], tap, w.out[tap])}, out...)
	}
	return out, nil
}

// unbridged says that an uplink and a tap are not in one bridge, and what the tap is in.
func (h *Handle) unbridged(uplink string, tap int, name string) string {
	where := "in no bridge"
	if a, err := h.linkAttrs(tap); err == nil && a.u32(unix.IFLA_MASTER) != 0 {
		where = "in " + h.linkName(int(a.u32(unix.IFLA_MASTER)))
	}
	return fmt.Sprintf("tap %s is %s and not in a bridge with %s, so the kernel's path gives the VM none of its frames", name, where, uplink)
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
	rules   *Rules
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
		switch {
		case p.Forwarding:
		case p.Disabled && p.NoCarrier && p.Index == b.Tap.Index: // no filter, but a VM that is off: the bridge forwards again when it comes
		case p.Disabled:
			say("port %s is not forwarding, because it is down or has no carrier ('ip link set %s up')", p.Name, p.Name)
		default:
			say("port %s is not forwarding: spanning tree keeps it back, so the bridge drops the frames ('bridge link show dev %s')", p.Name, p.Name)
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
			found, err := w.h.tcUsers(index, side.hook, w.rules.ours)
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
	ip4, ip6 := w.callsNetfilter()
	for _, c := range w.rules.chains {
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
	for _, t := range w.rules.ebtables {
		out = append(out, fmt.Sprintf("ebtables: the rules of table %s would not see the frames that bridge %s forwards", t, w.ports.Bridge))
	}
	ip4, ip6 := w.callsNetfilter()
	for _, f := range []struct {
		on     bool
		tool   string
		tables []string
	}{{ip4, "iptables", w.rules.iptables}, {ip6, "ip6tables", w.rules.ip6tables}} {
		if !f.on {
			continue
		}
		for _, t := range f.tables {
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
	r := w.rules
	return r.toIP4 && (r.sysctl4 || w.ports.CallIPTables), r.toIP6 && (r.sysctl6 || w.ports.CallIP6Tables)
}
