package netdev

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNotUplink is returned for an interface whose frames XDP and AF_XDP cannot take where they come in.
var ErrNotUplink = errors.New("cannot be an uplink")

// NotUplink is an ErrNotUplink with its parts.
type NotUplink struct{ Iface, Why, Remedy string }

func (e *NotUplink) Error() string {
	return fmt.Sprintf("interface %s: %v: %s: %s", e.Iface, ErrNotUplink, e.Why, e.Remedy)
}

func (e *NotUplink) Unwrap() error { return ErrNotUplink }

// CheckUplink is Handle.CheckUplink in the calling thread's namespace.
func CheckUplink(name string, vlan uint16) error {
	return With(func(h *Handle) error { return h.CheckUplink(name, vlan) })
}

// CheckUplink tells whether an interface may be an uplink for VMs of a VLAN (0: untagged). An uplink owns the receive
// queues that its frames come in by, or is a bond whose members do: AF_XDP binds to a device and a queue, and a device on top of another one gets frames
// that the lower one has merged already, longer than a chunk, or gets none. The list of what may be one is an allow-list.
// ErrNotUplink (a *NotUplink) says why and what to attach instead, ErrNoDevice that there is none of that name.
func (h *Handle) CheckUplink(name string, vlan uint16) error {
	l, err := h.link(name)
	if err != nil {
		return err
	}
	all, err := h.allLinks()
	if err != nil {
		return err
	}
	return all.checkUplink(l.Attrs().Index, vlan)
}

// linkSet is all interfaces of a namespace at one moment, by ifindex.
type linkSet map[int]linkInfo

// linkInfo is what the rules for uplinks look at, of one RTM_NEWLINK message.
type linkInfo struct {
	index    int
	name     string
	kind     string // IFLA_INFO_KIND, "" for most hardware
	hardware uint16 // ARPHRD_*
	loopback bool
	bus      bool // it has a parent on a bus (IFLA_PARENT_DEV_NAME, Linux 5.14): hardware, of whatever kind
	master   int  // IFLA_MASTER, 0: none
	lower    int  // IFLA_LINK: the device below, or a pair's other end; 0: none
	away     bool // lower lies in another namespace
	vlan     uint16
	stag     bool // of a VLAN device: 802.1ad, not 802.1Q
	tap      bool // of a tun device: Ethernet frames
	vnetHdr  bool // of a tun device: who holds it may hand in frames longer than the MTU

	mac       net.HardwareAddr
	carrier   bool
	downs     uint32 // how often the carrier was lost
	filtering bool   // of a bridge: VLAN filtering

	mode      uint8 // of a bond: BOND_MODE_*
	allActive bool  // of a bond: it takes what comes in by backups as well
	backup    bool  // of a bond's member: it is a backup
	miiUp     bool  // of a bond's member: the bond takes its link for up
}

// parseLink reads a message's attributes. hw and flags are ifi_type and ifi_flags of its struct ifinfomsg.
func parseLink(index int, hw uint16, flags uint32, a attrs) linkInfo {
	info := a.nested(unix.IFLA_LINKINFO)
	data := info.nested(unix.IFLA_INFO_DATA)
	l := linkInfo{
		index: index, name: a.text(unix.IFLA_IFNAME), kind: info.text(unix.IFLA_INFO_KIND),
		hardware: hw, loopback: flags&unix.IFF_LOOPBACK != 0,
		master: int(a.u32(unix.IFLA_MASTER)), lower: int(a.u32(unix.IFLA_LINK)),
		mac: net.HardwareAddr(a[unix.IFLA_ADDRESS]), carrier: a.u8(unix.IFLA_CARRIER) != 0, downs: a.u32(unix.IFLA_CARRIER_DOWN_COUNT),
	}
	_, l.away = a[unix.IFLA_LINK_NETNSID]
	_, l.bus = a[unix.IFLA_PARENT_DEV_NAME]
	switch l.kind {
	case "vlan":
		l.vlan = data.u16(unix.IFLA_VLAN_ID)
		l.stag = data.be16(unix.IFLA_VLAN_PROTOCOL) == unix.ETH_P_8021AD
	case "bridge":
		l.filtering = data.u8(nl.IFLA_BR_VLAN_FILTERING) != 0
	case "bond":
		l.mode, l.allActive = data.u8(nl.IFLA_BOND_MODE), data.u8(nl.IFLA_BOND_ALL_SLAVES_ACTIVE) != 0
	case "tun":
		l.tap = data.u8(unix.IFLA_TUN_TYPE) == unix.IFF_TAP
		l.vnetHdr = data.u8(unix.IFLA_TUN_VNET_HDR) != 0
	}
	if info.text(unix.IFLA_INFO_SLAVE_KIND) == "bond" {
		slave := info.nested(unix.IFLA_INFO_SLAVE_DATA)
		l.backup, l.miiUp = slave.u8(nl.IFLA_BOND_SLAVE_STATE) != 0, slave.u8(nl.IFLA_BOND_SLAVE_MII_STATUS) == 0
	}
	return l
}

// under are the interfaces whose master is the given one, by name.
func (s linkSet) under(master int) (out []linkInfo) {
	for _, l := range s {
		if l.master == master {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b linkInfo) int { return strings.Compare(a.name, b.name) })
	return out
}

// stacked says of the kinds of devices that get their frames from other devices why they are none to attach.
var stacked = map[string]string{
	"bridge":      "a bridge has no receive queues, its frames come in by its ports",
	"team":        "a team has no receive queues, and XDP on a member runs before the team drops what comes in by a backup",
	"vlan":        "a VLAN device has no receive queues, its frames come in by the device below",
	"macvlan":     "a macvlan device has no receive queues, its frames come in by the device below",
	"macvtap":     "a macvtap device has no receive queues, its frames come in by the device below",
	"ipvlan":      "an ipvlan device has no receive queues, its frames come in by the device below",
	"ipvtap":      "an ipvtap device has no receive queues, its frames come in by the device below",
	"vrf":         "a VRF has no receive queues, its frames come in by its interfaces",
	"openvswitch": "an Open vSwitch port has no receive queues, its frames come in by the bridge's other ports",
	"dsa":         "a port of a switch chip has no receive queues, and below it the frames carry the switch's tag",
	"macsec":      "a MACsec device has no receive queues, and below it the frames are encrypted",
	"hsr":         "an HSR or PRP device has no receive queues, and below it each frame comes twice",
	"batadv":      "a mesh device has no receive queues, and below it the frames are encapsulated",
	"vxlan":       tunnelled, "geneve": tunnelled, "gretap": tunnelled, "ip6gretap": tunnelled, "erspan": tunnelled, "ip6erspan": tunnelled,
	"gre": tunnelled, "ip6gre": tunnelled, "ipip": tunnelled, "ip6tnl": tunnelled, "sit": tunnelled, "vti": tunnelled, "vti6": tunnelled,
	"xfrm": tunnelled, "wireguard": tunnelled, "bareudp": tunnelled, "gtp": tunnelled, "amt": tunnelled, "ovpn": tunnelled,
	"l2tpeth": tunnelled, "ppp": tunnelled, "ipoib": "it carries no Ethernet frames",
	"netkit": "AF_XDP does not bind to a netkit device",
	"dummy":  "no frame comes in by a dummy device", "ifb": "no frame of the wire comes in by an ifb device", "nlmon": "no frame of the wire comes in by it",
}

const tunnelled = "a tunnel has no receive queues, and below it the frames are encapsulated"

// checkUplink is the decision, over what is known of all interfaces.
func (s linkSet) checkUplink(index int, vlan uint16) error {
	l, ok := s[index]
	if !ok {
		return fmt.Errorf("interface: index %d: %w", index, ErrNoDevice)
	}
	why := s.refused(l)
	if why == "" {
		return nil
	}
	return &NotUplink{l.name, why, s.remedy(l, vlan)}
}

// refused says why an interface is no uplink, "" when it may be one.
func (s linkSet) refused(l linkInfo) string {
	if l.kind == "bond" {
		return s.refusedBond(l)
	}
	if why := s.refusedItself(l); why != "" {
		return why
	}
	return s.refusedMember(l)
}

// refusedItself says what stands against a device whatever it belongs to.
func (s linkSet) refusedItself(l linkInfo) string {
	if why, ok := stacked[l.kind]; ok {
		return why
	}
	switch {
	case l.loopback:
		return "no frame of the wire comes in by the loopback device"
	case l.kind == "tun" && !l.tap:
		return "a tun device carries no Ethernet frames"
	case l.kind == "tun" && l.vnetHdr: // a VM's tap: GSO frames do not fit a chunk
		return "a tap with a virtio-net header hands in frames longer than the MTU"
	case l.hardware != unix.ARPHRD_ETHER:
		return "it carries no Ethernet frames"
	}
	// Hardware can stand on other devices as well: net_failover, a Hyper-V NIC with its virtual function.
	if ports := s.under(l.index); len(ports) > 0 {
		return fmt.Sprintf("frames come in by the devices below it (%s)", names(ports))
	}
	// A veth is one end of a pair: what its IFLA_LINK names is not below it.
	if l.lower != 0 && l.lower != l.index && l.kind != "veth" {
		return fmt.Sprintf("a device of kind %q on top of %s has no receive queues that are known here", l.kind, s.nameOf(l.lower))
	}
	if l.kind != "" && l.kind != "veth" && l.kind != "tun" && !l.bus {
		return fmt.Sprintf("it is of kind %q, of which it is not known how its frames come in", l.kind)
	}
	for _, p := range s {
		if p.kind == "dsa" && p.lower == l.index && !p.away {
			return fmt.Sprintf("it is the way to a switch chip (%s), so its frames carry the switch's tag", p.name)
		}
	}
	return ""
}

// refusedMember says what stands against a device because of the one it belongs to. A bridge, Open vSwitch and a VRF get
// what XDP passes and change nothing before: the device stays the one that the frames come in by.
func (s linkSet) refusedMember(l linkInfo) string {
	if l.master == 0 {
		return ""
	}
	m, known := s[l.master]
	switch m.kind {
	case "bridge", "openvswitch", "vrf":
		return ""
	case "bond":
		return fmt.Sprintf("it is a member of bond %s, whose frames come in by all of its members", m.name)
	case "team":
		return fmt.Sprintf("it is a member of %s %s, and XDP on a member runs before the %s drops what comes in by a backup", m.kind, m.name, m.kind)
	}
	if !known {
		return "it belongs to a device of another network namespace"
	}
	return fmt.Sprintf("it belongs to %s, which decides what of its frames counts", m.name)
}

func (s linkSet) nameOf(index int) string {
	if l, ok := s[index]; ok {
		return l.name
	}
	return fmt.Sprintf("a device of index %d", index)
}

func names(links []linkInfo) string {
	var out []string
	for _, l := range links {
		out = append(out, l.name)
	}
	return strings.Join(out, ", ")
}

// wayIn is a device that may be attached in the place of another one, with the tag that the frames carry there.
type wayIn struct {
	link linkInfo
	vlan uint16
}

// remedy says what an operator does instead. Commands in it do what they say.
func (s linkSet) remedy(l linkInfo, vlan uint16) string {
	if ways := s.bestWaysIn(l, vlan); len(ways) > 0 {
		var use []string
		for _, w := range ways {
			c := "'rscctl attach " + w.link.name
			if w.vlan != vlan { // otherwise it is among the flags that stay
				c += fmt.Sprintf(" --vlan %d", w.vlan)
			}
			use = append(use, c+"'")
		}
		which := ""
		if len(use) > 1 {
			which = ", the one that the VM's frames come in by"
		}
		return fmt.Sprintf("use %s with the other flags as they are%s", strings.Join(use, " or "), which)
	}
	if l.away {
		return "run rscctl in the network namespace of the device below it, and attach that"
	}
	if l.kind == "openvswitch" {
		return fmt.Sprintf("attach the port that is the host's uplink ('ovs-vsctl list-ports %s' lists them)", l.name)
	}
	if b := s.bondOf(l, map[int]bool{}); b.name != "" {
		return s.outOfBond(b, l)
	}
	return "attach the hardware interface or the veth that the VM's frames come in by, untunnelled and with at most one VLAN tag"
}

// waysIn follows a device down to those that may be uplinks for frames that carry a tag (0: none) at it. XDP reads one tag.
func (s linkSet) waysIn(l linkInfo, vlan uint16, seen map[int]bool) (out []wayIn) {
	if seen[l.index] {
		return nil
	}
	seen[l.index] = true
	if s.refused(l) == "" {
		return []wayIn{{l, vlan}}
	}
	if m := s[l.master]; m.kind == "bond" { // all of it or nothing
		return s.waysIn(m, vlan, seen)
	}
	lower, known := s[l.lower]
	known = known && !l.away
	switch l.kind {
	case "bridge", "vrf", "openvswitch":
		for _, p := range s.under(l.index) {
			if p.kind != "tun" { // a VM
				out = append(out, s.waysIn(p, vlan, seen)...)
			}
		}
	case "vlan":
		if known && vlan == 0 && !l.stag {
			return s.waysIn(lower, l.vlan, seen)
		}
	case "macvlan", "macvtap", "ipvlan", "ipvtap":
		if known {
			return s.waysIn(lower, vlan, seen)
		}
	}
	return out
}

// bondOf finds the bond or team that stands between a device and the wire; the zero value when there is none.
func (s linkSet) bondOf(l linkInfo, seen map[int]bool) linkInfo {
	if seen[l.index] {
		return linkInfo{}
	}
	seen[l.index] = true
	if isBond(l) {
		return l
	}
	next := s.under(l.index)
	if lower, ok := s[l.lower]; ok && !l.away && l.kind != "veth" {
		next = append(next, lower)
	}
	if m := s[l.master]; isBond(m) {
		next = append(next, m)
	}
	for _, p := range next {
		if b := s.bondOf(p, seen); b.name != "" {
			return b
		}
	}
	return linkInfo{}
}

func isBond(l linkInfo) bool { return l.kind == "bond" || l.kind == "team" }

// outOfBond says what is possible on a host whose wire is a bond: an interface outside it, if need be one of its members.
func (s linkSet) outOfBond(b, asked linkInfo) string {
	members := s.under(b.index)
	if len(members) == 0 {
		return fmt.Sprintf("give it one ('ip link set dev NIC master %s'), or attach an interface that is in no %s", b.name, b.kind)
	}
	m := members[len(members)-1]
	if asked.master == b.index {
		m = asked
	}
	return fmt.Sprintf("attach an interface that is in no %s: 'ip link set dev %s nomaster' takes one of %s's members (%s) out, at the price of its redundancy",
		b.kind, m.name, b.name, names(members))
}
