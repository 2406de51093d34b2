package controller

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
)

// change is one offload that attach switches and detach puts back. peer tells that link is the other end of the veth
// named via, which may live in another namespace and is looked for again when the change is undone.
type change struct {
	id      uint64        // in the undo list
	Link    string        `json:"link"`
	Via     string        `json:"via,omitempty"`
	Feature string        `json:"feature"`
	Why     string        `json:"why"`
	Undo    netdev.Change `json:"undo"`
}

func (c *change) text() string {
	return fmt.Sprintf("switch %s off on %s: %s", c.Feature, c.Link, c.Why)
}

func (c *change) restoredText() string {
	return fmt.Sprintf("%s switched on again on %s", c.Feature, c.Link)
}

// apply switches the offload off. It stays undoable also when it fails half-way.
func (c *change) apply() (err error) {
	if c.Via == "" {
		err = withHandle(func(h *netdev.Handle) error {
			c.Undo, err = h.ChangeOffload(c.Link, c.Feature, false)
			return err
		})
	} else {
		err = withPeer(c.Via, func(p *netdev.Peer) error {
			c.Undo, err = p.ChangeOffload(c.Feature, false)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("offload %s of %s: %w", c.Feature, c.Link, errors.Join(err, c.undo()))
	}
	return nil
}

// undo puts the offload back. A link that is gone needs nothing.
func (c *change) undo() error {
	if len(c.Undo.Was) == 0 {
		return nil
	}
	var err error
	if c.Via == "" {
		err = withHandle(func(h *netdev.Handle) error { return h.UndoOffload(c.Link, c.Undo) })
	} else {
		err = withPeer(c.Via, func(p *netdev.Peer) error { return p.UndoOffload(c.Undo) })
	}
	if err != nil && !errors.Is(err, netdev.ErrNoDevice) {
		return fmt.Errorf("offload %s of %s: %w", c.Feature, c.Link, err)
	}
	return nil
}

func withHandle(fn func(*netdev.Handle) error) error {
	h, err := netdev.Open()
	if err != nil {
		return err
	}
	return errors.Join(fn(h), h.Close())
}

func withPeer(via string, fn func(*netdev.Peer) error) error {
	p, err := netdev.VethPeer(via)
	if err != nil {
		return err
	}
	return fn(p)
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
