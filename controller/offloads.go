package controller

import (
	"errors"
	"fmt"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
)

// change is one offload that attach switches and detach puts back. Via tells that link is the other end of the veth of that name,
// which may live in another namespace and is looked for again when the change is undone. Names are for people: what is
// undone is undone at the interface that Device identifies, whatever its name is by then.
type change struct {
	id      uint64 // in the undo list
	Link    string
	Via     string
	Device  netdev.Identity // of Via where that is set, otherwise of Link; zero in a list that an old version wrote
	Feature string
	Why     string
	Undo    netdev.Change
}

func (c *change) text() string {
	return fmt.Sprintf("switch %s off on %s: %s", c.Feature, c.Link, c.Why)
}

func (c *change) restoredText() string {
	return fmt.Sprintf("%s switched on again on %s", c.Feature, c.Link)
}

// named is the interface of this namespace by which the changed one is found, by the name that it had.
func (c *change) named() string {
	if c.Via != "" {
		return c.Via
	}
	return c.Link
}

// at runs fn on the interface that is changed, by the name that it has now. ErrNoDevice when it is gone.
func (c *change) at(fn func(h *netdev.Handle, name string) error) error {
	return withHandle(func(h *netdev.Handle) error {
		name := c.named()
		if c.Device.Index != 0 {
			var err error
			if name, err = h.NameOf(c.Device); err != nil {
				return err
			}
		}
		if c.Via == "" {
			return fn(h, name)
		}
		p, err := h.VethPeer(name)
		if err != nil {
			return err
		}
		return p.Do(func(there *netdev.Handle) error { return fn(there, p.Name) })
	})
}

// plan notes at which interface the change is made and what undoes it, and changes nothing.
func (c *change) plan() error {
	err := withHandle(func(h *netdev.Handle) (err error) {
		c.Device, err = h.Identify(c.named())
		return err
	})
	if err == nil {
		err = c.at(func(h *netdev.Handle, name string) (err error) {
			c.Undo, err = h.PlanOffload(name, c.Feature, false)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("offload %s of %s: %w", c.Feature, c.Link, err)
	}
	return nil
}

// apply switches the offload off. It stays undoable also when it fails half-way.
func (c *change) apply() error {
	err := c.at(func(h *netdev.Handle, name string) error {
		_, err := h.ChangeOffload(name, c.Feature, false)
		return err
	})
	if err != nil {
		return fmt.Errorf("offload %s of %s: %w", c.Feature, c.Link, err)
	}
	return nil
}

// undo puts the offload back. A link that is gone needs nothing.
func (c *change) undo() error {
	if len(c.Undo.Was) == 0 {
		return nil
	}
	err := c.at(func(h *netdev.Handle, name string) error { return h.UndoOffload(name, c.Undo) })
	if err != nil && !errors.Is(err, netdev.ErrNoDevice) {
		return fmt.Errorf("offload %s of %s: %w", c.Feature, c.Link, err)
	}
	return nil
}

// applyChanges makes changes for an interface that is, or is about to be, attached. They are on the undo list before the first of
// them is made, so that a crash at any moment leaves a note of what to put back. On failure none is left. The caller holds mu.
func (c *Controller) applyChanges(iface string, todo []change) ([]change, error) {
	for i := range todo {
		if err := todo[i].plan(); err != nil {
			return nil, err
		}
	}
	if err := c.record(iface, todo); err != nil {
		return nil, err
	}
	for i := range todo {
		if err := todo[i].apply(); err != nil {
			return nil, errors.Join(append([]error{err}, c.putBack(todo)...)...)
		}
	}
	return todo, nil
}

// keepChanges notes changes that are in force. What was changed before stays as it was noted then; twice are the ids, in the undo
// list, of what was noted again.
func (u *uplink) keepChanges(done []change) (twice []uint64) {
	u.changes = slices.Clone(u.changes)
	for _, ch := range done {
		if slices.ContainsFunc(u.changes, func(was change) bool {
			return was.Device == ch.Device && (was.Via == "") == (ch.Via == "") && was.Feature == ch.Feature && len(was.Undo.Was) > 0
		}) {
			twice = append(twice, ch.id)
		} else {
			u.changes = append(u.changes, ch)
		}
	}
	return twice
}

func withHandle(fn func(*netdev.Handle) error) error {
	h, err := netdev.Open()
	if err != nil {
		return err
	}
	return errors.Join(fn(h), h.Close())
}

// planOffloads says which offloads of the interface and its veth peer stand in the way. Those of the interface are
// switched off; those of the peer only when the operator asked for it, otherwise they become warnings with the remedy.
func planOffloads(f *netdev.Facts, req api.AttachRequest) (todo []change, warnings []string, err error) {
	err = withHandle(func(h *netdev.Handle) error {
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
				todo = append(todo, change{Link: f.Name, Feature: o.feature, Why: o.why})
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
	on, fixed, err := p.Offload(netdev.TxChecksum)
	if err != nil || !on || fixed {
		return todo, warnings, nil
	}
	if req.FixOffloads {
		todo = append(todo, change{Link: p.Name, Via: f.Name, Feature: netdev.TxChecksum, Why: "its frames would come with partial checksums"})
	} else {
		warnings = append(warnings, fmt.Sprintf("%s sends partial checksums, which the guest will drop and we never merge: %s", p.Name, remedyFor(p)))
	}
	return todo, warnings, nil
}

func remedyFor(p *netdev.Peer) string {
	in := ""
	if p.NSPath != "" {
		in = fmt.Sprintf("nsenter --net=%s ", p.NSPath)
	}
	return fmt.Sprintf("run '%sethtool -K %s tx off', or attach with --fix-offloads", in, p.Name)
}

// partialRemedy is what an operator does about partial checksums on this uplink.
func (u *uplink) partialRemedy() string {
	if p, err := netdev.VethPeer(u.name); err == nil && p.Reachable {
		return remedyFor(p)
	}
	return "switch the sender's tx checksum offload off ('ethtool -K DEV tx off' where the frames are made)"
}

// checkTags refuses an uplink on which a VLAN tag could pass unseen: neither the XDP program reads tags that were taken
// out of the frame, nor is it certain that none is. A tagged frame would enter another tenant's untagged VM.
func (u *uplink) checkTags() error {
	if u.prog.ReadsVLANTag() {
		return nil
	}
	return withHandle(func(h *netdev.Handle) error {
		if u.facts.Kind == "veth" { // the tag rides beside the frame whatever rx-vlan-offload says
			p, err := netdev.VethPeer(u.name)
			if err == nil && p.Reachable {
				if on, _, err := p.Offload(netdev.TxVLAN); err == nil && !on {
					return nil
				}
			}
			return fmt.Errorf("interface %s: VLAN tags cannot be seen here (XDP is %s, and the peer hands tags beside the frame): switch the peer's %s off", u.name, u.prog.Mode(), netdev.TxVLAN)
		}
		on, fixed, err := h.Offload(u.name, netdev.RxVLAN)
		if errors.Is(err, netdev.ErrNoFeature) || (err == nil && !on) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("interface %s: offloads: %w", u.name, err)
		}
		return fmt.Errorf("interface %s: %s is on (fixed: %t) and the driver does not show tags to XDP: a tagged frame could enter an untagged VM: use another interface", u.name, netdev.RxVLAN, fixed)
	})
}
