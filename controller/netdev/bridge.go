package netdev

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// BridgePort is one of the two ports of a bridge on an uplink's way to a tap.
type BridgePort struct {
	Name       string
	Index      int  // ifindex
	Forwarding bool // its spanning tree state lets frames through (BR_STATE_FORWARDING)
	Disabled   bool // the bridge does not use it: it is down or has no carrier (BR_STATE_DISABLED)
	NoCarrier  bool // of a tap: nobody has it open
	Learning   bool // it learns senders from received frames
	Locked     bool // it takes frames only from senders that are known already
	Isolated   bool // no frames to and from other isolated ports
	Member     bool // it belongs to the VLAN of the frames; true without VLAN filtering
	Untagged   bool // it sends that VLAN's frames without tag; true without VLAN filtering
}

// BridgePorts is the way that a bridge gives an uplink's frames to a VM's tap.
type BridgePorts struct {
	Bridge        string
	Index         int           // the bridge's ifindex
	Ageing        time.Duration // how long a sender is remembered; 0: not at all, the bridge floods always
	VLANFiltering bool
	VID           uint16     // the bridge's VLAN of the frames, 0 without VLAN filtering or when untagged frames belong to none
	Port          BridgePort // the uplink, or the VLAN device on top of it
	Tap           BridgePort
	CallIPTables  bool // of this bridge: its IPv4 frames go through netfilter (if br_netfilter is loaded)
	CallIP6Tables bool
}

// FindPorts finds the Linux bridge that the tap is a port of and the port by which the uplink's frames of a VLAN (0: the
// untagged ones) come into it: the uplink itself, the 802.1Q device of that id on top of it, or the uplink with the tag as
// a VLAN of the bridge. All are ifindexes. ErrNotBridged when there is none, ErrNoDevice when an interface is gone.
func (h *Handle) FindPorts(uplink int, vlan uint16, tap int) (*BridgePorts, error) {
	t, err := h.nl.LinkByIndex(tap)
	if err != nil {
		return nil, linkError(fmt.Sprintf("index %d", tap), err)
	}
	name, master := t.Attrs().Name, t.Attrs().MasterIndex
	if master == 0 {
		return nil, fmt.Errorf("interface: %s: %w: it is in no bridge", name, ErrNotBridged)
	}
	m, err := h.nl.LinkByIndex(master)
	if err != nil {
		return nil, linkError(fmt.Sprintf("index %d", master), err)
	}
	if m.Type() != "bridge" {
		return nil, fmt.Errorf("interface: %s: %w: it belongs to %s, of type %s", name, ErrNotBridged, m.Attrs().Name, m.Type())
	}
	info, err := h.linkAttrs(master)
	if err != nil {
		return nil, err
	}
	data := info.nested(unix.IFLA_LINKINFO).nested(nl.IFLA_INFO_DATA)
	b := &BridgePorts{
		Bridge: m.Attrs().Name, Index: master, Ageing: time.Duration(data.u32(nl.IFLA_BR_AGEING_TIME)) * 10 * time.Millisecond, // USER_HZ
		VLANFiltering: data.u8(nl.IFLA_BR_VLAN_FILTERING) != 0,
		CallIPTables:  data.u8(nl.IFLA_BR_NF_CALL_IPTABLES) != 0, CallIP6Tables: data.u8(nl.IFLA_BR_NF_CALL_IP6TABLES) != 0,
	}
	port, inner, err := h.portOf(b, uplink, vlan)
	if err != nil {
		return nil, err
	}
	if b.Port, err = h.bridgePort(port); err != nil {
		return nil, err
	}
	if b.Tap, err = h.bridgePort(tap); err != nil {
		return nil, err
	}
	return b, h.fillVLAN(b, inner)
}

// portOf returns the port of the bridge for an uplink's frames of a VLAN, and the VLAN that is still on them there.
func (h *Handle) portOf(b *BridgePorts, uplink int, vlan uint16) (port int, inner uint16, err error) {
	up, err := h.nl.LinkByIndex(uplink)
	if err != nil {
		return 0, 0, linkError(fmt.Sprintf("index %d", uplink), err)
	}
	if vlan != 0 {
		all, err := h.nl.LinkList()
		if err != nil {
			return 0, 0, fmt.Errorf("interfaces: %w", err)
		}
		for _, l := range all {
			v, ok := l.(*netlink.Vlan)
			if ok && v.ParentIndex == uplink && v.VlanId == int(vlan) && v.MasterIndex == b.Index && v.VlanProtocol == netlink.VLAN_PROTOCOL_8021Q {
				return v.Index, 0, nil
			}
		}
	}
	// Without VLAN filtering a bridge would hand the VM the frame with its tag: not the way of an access port.
	if up.Attrs().MasterIndex == b.Index && (vlan == 0 || b.VLANFiltering) {
		return uplink, vlan, nil
	}
	return 0, 0, fmt.Errorf("interface: %s: %w: bridge %s has no port for it and VLAN %d", up.Attrs().Name, ErrNotBridged, b.Bridge, vlan)
}

// Of include/uapi/linux/if_bridge.h.
const (
	stateDisabled   = 0
	stateForwarding = 3
)

// bridgePort reads one port, without what the VLAN filter says about it. ErrNotBridged when it is none.
func (h *Handle) bridgePort(index int) (p BridgePort, err error) {
	a, err := h.linkAttrs(index)
	if err != nil {
		return p, err
	}
	name, info := a.text(unix.IFLA_IFNAME), a.nested(unix.IFLA_LINKINFO)
	if info.text(nl.IFLA_INFO_SLAVE_KIND) != "bridge" {
		return p, fmt.Errorf("interface: %s: %w: it is in no bridge", name, ErrNotBridged)
	}
	data := info.nested(nl.IFLA_INFO_SLAVE_DATA)
	return BridgePort{
		Name: name, Index: index, Disabled: data.u8(nl.IFLA_BRPORT_STATE) == stateDisabled, NoCarrier: a.u8(unix.IFLA_CARRIER) == 0,
		Forwarding: data.u8(nl.IFLA_BRPORT_STATE) == stateForwarding, Learning: data.u8(nl.IFLA_BRPORT_LEARNING) != 0,
		Locked: data.u8(brportLocked) != 0, Isolated: data.u8(brportIsolated) != 0,
		Member: true, Untagged: true,
	}, nil
}

// Of include/uapi/linux/if_link.h, where the netlink package stops short.
const (
	brportIsolated = 33 // IFLA_BRPORT_ISOLATED, Linux 4.18
	brportLocked   = 39 // IFLA_BRPORT_LOCKED, Linux 5.18
)

// fillVLAN finds out what the bridge's VLAN filter does with the frames, whose tag at the port is inner, 0 for none.
func (h *Handle) fillVLAN(b *BridgePorts, inner uint16) error {
	if !b.VLANFiltering {
		return nil
	}
	vlans, err := h.nl.BridgeVlanList()
	if err != nil {
		return fmt.Errorf("bridge %s: VLANs: %w", b.Bridge, err)
	}
	b.VID = inner
	for _, v := range vlans[int32(b.Port.Index)] {
		if inner == 0 && v.PortVID() {
			b.VID = v.Vid
		}
	}
	for _, p := range []*BridgePort{&b.Port, &b.Tap} {
		p.Member, p.Untagged = false, false
		for _, v := range vlans[int32(p.Index)] {
			if v.Vid == b.VID && b.VID != 0 {
				p.Member, p.Untagged = true, v.EngressUntag()
			}
		}
	}
	return nil
}
