// Package hostchange makes the changes of a host that package state records, and undoes them: offloads of network devices. Who
// makes one calls Plan, has it recorded, and then calls Apply: a crash at any moment leaves a note of what to put back.
package hostchange

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
)

// SwitchOff is an offload of link that is to be switched off. Where via is given, link is the other end of the veth of that name,
// which may lie in another namespace and is looked for again when the change is undone. why is told to people.
func SwitchOff(link, via, feature, why string) state.Change {
	return state.Change{Kind: state.Offload, Link: link, Via: via, Feature: feature, Why: why}
}

// Text says in words what is changed.
func Text(c state.Change) string {
	return fmt.Sprintf("switch %s off on %s: %s", c.Feature, c.Link, c.Why)
}

// UndoneText says in words that it was put back.
func UndoneText(c state.Change) string {
	return fmt.Sprintf("%s switched on again on %s", c.Feature, c.Link)
}

// ByHand is the command by which an operator switches an offload of a veth peer off.
func ByHand(p *netdev.Peer, feature string) string {
	in := ""
	if p.NSPath != "" {
		in = "nsenter --net=" + p.NSPath + " "
	}
	return fmt.Sprintf("%sethtool -K %s %s off", in, p.Name, feature)
}

// Plan notes at which interface the change is made and what undoes it, and changes nothing.
func Plan(c *state.Change) error {
	err := netdev.With(func(h *netdev.Handle) error {
		id, err := h.Identify(named(*c))
		c.Device = state.Device{Index: id.Index, Addr: id.Permanent, Boot: id.Boot}
		return err
	})
	if err == nil {
		err = at(*c, func(h *netdev.Handle, name string) error {
			undo, err := h.PlanOffload(name, c.Feature, false)
			c.Was = undo.Was
			return err
		})
	}
	return wrap(*c, err)
}

// Apply switches the offload off. It stays undoable also when it fails half-way.
func Apply(c state.Change) error {
	return wrap(c, at(c, func(h *netdev.Handle, name string) error {
		_, err := h.ChangeOffload(name, c.Feature, false)
		return err
	}))
}

// Undo puts the offload back. done is false when there was nothing to do: nothing had been changed, or the interface is gone.
func Undo(c state.Change) (done bool, err error) {
	if len(c.Was) == 0 {
		return false, nil
	}
	err = at(c, func(h *netdev.Handle, name string) error {
		return h.UndoOffload(name, netdev.Change{Feature: c.Feature, Was: c.Was})
	})
	if errors.Is(err, netdev.ErrNoDevice) {
		return false, nil
	}
	return err == nil, wrap(c, err)
}

// at runs fn on the interface that is changed, by the name that it has now: names are for people, and what Device identifies is
// meant. ErrNoDevice when it is gone.
func at(c state.Change, fn func(h *netdev.Handle, name string) error) error {
	return netdev.With(func(h *netdev.Handle) error {
		name, err := NameNow(h, c)
		if err != nil {
			return err
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

// NameNow is the name that the interface of this namespace by which the changed one is found has now. ErrNoDevice when it is gone.
func NameNow(h *netdev.Handle, c state.Change) (string, error) {
	if c.Device.Index == 0 {
		return named(c), nil
	}
	return h.NameOf(netdev.Identity{Index: c.Device.Index, Permanent: c.Device.Addr, Boot: c.Device.Boot})
}

// named is the interface of this namespace by which the changed one is found, by the name that it had.
func named(c state.Change) string {
	if c.Via != "" {
		return c.Via
	}
	return c.Link
}

func wrap(c state.Change, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("offload %s of %s: %w", c.Feature, c.Link, err)
}
