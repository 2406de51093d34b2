package netdev

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddressesOn is Handle.AddressesOn in the calling thread's namespace.
func AddressesOn(ifindex int) (out []net.HardwareAddr, err error) {
	err = With(func(h *Handle) error {
		out, err = h.AddressesOn(ifindex)
		return err
	})
	return out, err
}

// AddressesOn lists the MAC addresses of an interface and of all that is on top of it: the bridge
// or bond that it is in, VLAN devices, macvlans and so on, and what is on those. What is below other ports of a bridge is not among them.
func (h *Handle) AddressesOn(ifindex int) (out []net.HardwareAddr, err error) {
	all, err := h.nl.LinkList()
	if err != nil {
		return nil, linkErrno(err)
	}
	on := map[int]bool{ifindex: true}
	for more := true; more; {
		more = false
		for _, l := range all {
			a := l.Attrs()
			if on[a.Index] {
				if a.MasterIndex != 0 && !on[a.MasterIndex] {
					on[a.MasterIndex], more = true, true
				}
				continue
			}
			if isUpper(l) && on[a.ParentIndex] {
				on[a.Index], more = true, true
			}
		}
	}
	for _, l := range all {
		if a := l.Attrs(); on[a.Index] && len(a.HardwareAddr) > 0 {
			out = append(out, a.HardwareAddr)
		}
	}
	return out, nil
}

// isUpper reports whether an interface is on top of the one that it is linked to; a veth is linked to its other end.
func isUpper(l netlink.Link) bool {
	if l.Attrs().NetNsID >= 0 {
		return false // linked to one of another namespace
	}
	switch l.Type() {
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec":
		return true
	}
	return false
}

// StationsBehind lists what the bridge of an interface has learned at its other ports; nothing where the interface is in no bridge. Of a bridge
// with VLAN filtering, what is in a VLAN of the interface counts, with the tag that frames of that VLAN have there.
func StationsBehind(ifindex int) (out []Station, err error) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil, linkErrno(err)
	}
	bridge := l.Attrs().MasterIndex
	if bridge == 0 {
		return nil, nil
	}
	entries, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, linkErrno(err)
	}
	tags, err := tagsOn(ifindex)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.MasterIndex != bridge || e.LinkIndex == ifindex || e.State&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 {
			continue
		}
		if tag, member := tags[uint16(e.Vlan)]; (member || e.Vlan == 0) && len(e.HardwareAddr) == 6 {
			out = append(out, Station{VLAN: tag, MAC: [6]byte(e.HardwareAddr)})
		}
	}
	return out, nil
}

// tagsOn tells for each VLAN that a bridge lets pass at a port which tag its frames have there, 0 for none. A bridge without VLANs has none.
func tagsOn(port int) (map[uint16]uint16, error) {
	all, err := netlink.BridgeVlanList()
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, linkErrno(err)
	}
	tags := map[uint16]uint16{}
	for _, v := range all[int32(port)] {
		if tags[v.Vid] = v.Vid; v.EngressUntag() {
			tags[v.Vid] = 0
		}
	}
	return tags, nil
}
