package netdev

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Own is an address of the host: a device's, and the tag that its frames have at an interface below it.
type Own struct {
	Station
	Dev string
}

// AddressesOn is Handle.AddressesOn in the calling thread's namespace.
func AddressesOn(ifindex int) (out []Own, err error) {
	err = With(func(h *Handle) error {
		out, err = h.AddressesOn(ifindex)
		return err
	})
	return out, err
}

// AddressesOn lists the MAC addresses of an interface and of all that is on top of it: the bridge
// or bond that it is in, VLAN devices, macvlans and so on, and what is on those. What is below other ports of a bridge is not among them.
func (h *Handle) AddressesOn(ifindex int) (out []Own, err error) {
	all, err := h.nl.LinkList()
	if err != nil {
		return nil, linkErrno(err)
	}
	tags := map[int]uint16{ifindex: 0} // by ifindex; of two tags the outer one, which is what XDP reads
	for more := true; more; {
		more = false
		on := func(index int, tag uint16) {
			if _, known := tags[index]; !known {
				tags[index], more = tag, true
			}
		}
		for _, l := range all {
			a := l.Attrs()
			if tag, known := tags[a.Index]; known {
				if a.MasterIndex != 0 {
					on(a.MasterIndex, tag)
				}
				continue
			}
			tag, known := tags[a.ParentIndex]
			if v, is := l.(*netlink.Vlan); is && tag == 0 {
				tag = uint16(v.VlanId)
			}
			if known && isUpper(l) {
				on(a.Index, tag)
			}
		}
	}
	for _, l := range all {
		a := l.Attrs()
		if tag, known := tags[a.Index]; known && len(a.HardwareAddr) == 6 {
			out = append(out, Own{Station{MAC: [6]byte(a.HardwareAddr), VLAN: tag}, a.Name})
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
