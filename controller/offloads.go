package controller

import (
	"errors"
	"fmt"
	"slices"

	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
)

// applyChanges makes changes for an interface that is, or is about to be, attached. They are on the undo list before the first of
// them is made, so that a crash at any moment leaves a note of what to put back. On failure none is left. The caller holds mu.
func (c *Controller) applyChanges(iface string, todo []state.Change) ([]state.Change, error) {
	for i := range todo {
		todo[i].Iface = iface
		if err := hostchange.Plan(&todo[i]); err != nil {
			return nil, err
		}
	}
	if err := c.record(todo); err != nil {
		return nil, err
	}
	for i := range todo {
		if err := hostchange.Apply(todo[i]); err != nil {
			return nil, errors.Join(append([]error{err}, c.putBack(todo)...)...)
		}
	}
	return todo, nil
}

// keepChanges notes changes that are in force. What was changed before stays as it was noted then; twice are the ids, in the undo
// list, of what was noted again.
func (u *uplink) keepChanges(done []state.Change) (twice []uint64) {
	u.changes = slices.Clone(u.changes)
	for _, ch := range done {
		if slices.ContainsFunc(u.changes, func(was state.Change) bool {
			return was.Device == ch.Device && (was.Via == "") == (ch.Via == "") && was.Feature == ch.Feature && len(was.Was) > 0
		}) {
			twice = append(twice, ch.ID)
		} else {
			u.changes = append(u.changes, ch)
		}
	}
	return twice
}

// planAllOffloads is planOffloads for the devices by which an uplink's frames come in.
func planAllOffloads(devs []*netdev.Facts, fix bool) (todo []state.Change, warnings []string, err error) {
	for _, f := range devs {
		more, said, err := planOffloads(f, fix)
		if err != nil {
			return nil, nil, err
		}
		todo, warnings = append(todo, more...), append(warnings, said...)
	}
	return todo, warnings, nil
}

// planOffloads says which offloads of the interface and its veth peer stand in the way. Those of the interface are
// switched off; those of the peer only with fix, which an operator has to say, otherwise they become warnings with the remedy.
func planOffloads(f *netdev.Facts, fix bool) (todo []state.Change, warnings []string, err error) {
	err = netdev.With(func(h *netdev.Handle) error {
		for _, o := range []struct{ feature, why string }{
			{netdev.LRO, "the NIC would merge frames before we see them"},
			{netdev.GROHW, "the NIC would merge frames before we see them"},
			{netdev.RxVLAN, "the NIC would take VLAN tags out of the frame where XDP cannot see them"},
		} {
			on, fixed, err := h.Offload(f.Name, o.feature)
			switch {
			case errors.Is(err, netdev.ErrNoFeature):
				continue
			case err != nil:
				return err
			case on && fixed && o.feature != netdev.RxVLAN: // tags: the XDP program reads them, or attach refuses later
				warnings = append(warnings, fmt.Sprintf("%s of %s is on and fixed by the driver: %s", o.feature, f.Name, o.why))
			case on && !fixed:
				todo = append(todo, hostchange.SwitchOff(f.Name, "", o.feature, o.why))
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("interface %s: offloads: %w", f.Name, err)
	}
	if f.Kind != "veth" {
		return todo, warnings, nil
	}
	p, err := netdev.VethPeer(f.Name)
	if err != nil || !p.Reachable {
		warnings = append(warnings, fmt.Sprintf("the other end of %s is out of reach: if frames arrive with partial checksums, run 'ethtool -K PEER tx off' in its namespace", f.Name))
		return todo, warnings, nil
	}
	switch warning := peerWarning(p); {
	case warning == "":
	case fix:
		todo = append(todo, hostchange.SwitchOff(p.Name, f.Name, netdev.TxChecksum, "its frames would come with partial checksums"))
	default:
		warnings = append(warnings, warning)
	}
	return todo, warnings, nil
}

func remedyFor(p *netdev.Peer) string {
	return fmt.Sprintf("run '%s', or attach with --fix-offloads", hostchange.ByHand(p, "tx"))
}

// partialRemedy is what an operator does about partial checksums on this uplink.
func (u *uplink) partialRemedy() string {
	for _, d := range u.devs {
		if p, err := netdev.VethPeer(d.facts.Name); err == nil && p.Reachable {
			return remedyFor(p)
		}
	}
	return "switch the sender's tx checksum offload off ('ethtool -K DEV tx off' where the frames are made)"
}

// checkTags refuses an uplink on which a VLAN tag could pass unseen: neither the XDP program reads tags that were taken
// out of the frame, nor is it certain that none is. A tagged frame would enter another tenant's untagged VM.
func (u *uplink) checkTags() error { return u.eachDevice((*device).checkTags) }

func (d *device) checkTags() error {
	if d.prog.ReadsVLANTag() {
		return nil
	}
	name := d.facts.Name
	return netdev.With(func(h *netdev.Handle) error {
		if d.facts.Kind == "veth" { // the tag rides beside the frame whatever rx-vlan-offload says
			p, err := netdev.VethPeer(name)
			if err == nil && p.Reachable {
				if on, _, err := p.Offload(netdev.TxVLAN); err == nil && !on {
					return nil
				}
			}
			return fmt.Errorf("interface %s: VLAN tags cannot be seen here (XDP is %s, and the peer hands tags beside the frame): switch the peer's %s off", name, d.prog.Mode(), netdev.TxVLAN)
		}
		on, fixed, err := h.Offload(name, netdev.RxVLAN)
		if errors.Is(err, netdev.ErrNoFeature) || (err == nil && !on) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("interface %s: offloads: %w", name, err)
		}
		return fmt.Errorf("interface %s: %s is on (fixed: %t) and the driver does not show tags to XDP: a tagged frame could enter an untagged VM: use another interface", name, netdev.RxVLAN, fixed)
	})
}
