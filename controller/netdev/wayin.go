package netdev

import (
	"fmt"
	"slices"
)

// WayIn is an interface by which frames for a VM come in from the wire, with the VLAN tag (0: none) that they carry there.
type WayIn struct {
	Name string
	VLAN uint16
}

// WaysIn are the interfaces that can be attached for a VM whose frames have the tag vlan (0: none) on the named interface, a bridge most of
// the time. There may be none, or several. Errors: ErrNoDevice.
func (h *Handle) WaysIn(name string, vlan uint16) ([]WayIn, error) {
	s, err := h.allLinks()
	if err != nil {
		return nil, err
	}
	for _, l := range s {
		if l.name != name {
			continue
		}
		var out []WayIn
		for _, w := range s.bestWaysIn(l, vlan) {
			out = append(out, WayIn{w.link.name, w.vlan})
		}
		return out, nil
	}
	return nil, fmt.Errorf("interface %q: %w", name, ErrNoDevice)
}

// bestWaysIn are the hardware among the ways in, bonds of it included: beside it the other ports of a bridge are containers and VMs.
func (s linkSet) bestWaysIn(l linkInfo, vlan uint16) []wayIn {
	ways := s.waysIn(l, vlan, map[int]bool{})
	if hw := slices.DeleteFunc(slices.Clone(ways), func(w wayIn) bool { return w.link.kind != "" && w.link.kind != "bond" && !w.link.bus }); len(hw) > 0 {
		return hw
	}
	return ways
}
