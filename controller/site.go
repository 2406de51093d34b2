package controller

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
)

// site is what was found of an interface that is to become an uplink.
type site struct {
	facts *netdev.Facts
	bond  *netdev.Bond    // nil: it is none
	devs  []*netdev.Facts // by whose receive queues its frames come in: itself, or a bond's members
	room  frameRoom       // for its frames

	xskMap string   // of somebody else's program, "": ours is to be used
	picked []uint16 // and the queues whose sockets go into it
}

// queues is how many receive queues its frames come in by.
func (s *site) queues() (n int) {
	if s.xskMap != "" {
		return len(s.picked)
	}
	for _, d := range s.devs {
		n += d.RxQueues
	}
	return n
}

// site is what is known of an uplink.
func (u *uplink) site() *site {
	s := &site{facts: u.facts, bond: u.bond, room: u.room()}
	if u.foreign != nil {
		s.xskMap, s.picked = u.foreign.path, u.foreign.queues
	}
	for _, d := range u.devs {
		s.devs = append(s.devs, d.facts)
	}
	return s
}

// changes are what an interface needs to become an uplink, in words.
func (s *site) changes() (out []string) {
	if s.xskMap != "" {
		return []string{fmt.Sprintf("put AF_XDP sockets of %s's queues %s into the map pinned at %s (its XDP program is left alone)", s.facts.Name, api.QueuesText(s.picked), s.xskMap)}
	}
	for _, d := range s.devs {
		out = append(out, fmt.Sprintf("attach an XDP program and %d AF_XDP sockets to %s (the link may flap)", d.RxQueues, d.Name))
	}
	return out
}

// inspectUplink looks at an interface and tells whether it can be an uplink for a VM. It changes nothing.
func inspectUplink(req *api.AttachRequest, vlan uint16) (*site, error) {
	name := req.Iface
	f, err := netdev.Inspect(name)
	if errors.Is(err, netdev.ErrNoDevice) {
		err = fmt.Errorf("%w: %s'ip link' lists those of this network namespace", err, likeLink(name, err))
	}
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if err := netdev.CheckUplink(name, vlan); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	s := &site{facts: f, devs: []*netdev.Facts{f}, xskMap: req.XSKMap, picked: req.Queues}
	if s.bond, err = netdev.BondOf(f.Index); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if s.xskMap != "" {
		err = inspectForeign(f, s.bond, req)
	} else if f.XDP.Attached {
		err = foreignXDP(f)
	}
	if err != nil {
		return nil, fmt.Errorf("attach: interface %s: %w", name, err)
	}
	if s.bond != nil {
		if s.devs, err = inspectMembers(s.bond.Members); err != nil {
			return nil, fmt.Errorf("attach: interface %s: %w", name, err)
		}
	}
	several := multiBuffer
	if s.xskMap != "" {
		several = func() error { return errForeignPieces }
	}
	for _, d := range s.devs {
		room, err := roomFor(d, several)
		if err != nil {
			return nil, fmt.Errorf("attach: interface %s: %w", d.Name, err)
		}
		s.room = s.room.with(room)
	}
	return s, nil
}

// foreignXDP says who holds the interface: another controller, or a program that is not ours.
func foreignXDP(f *netdev.Facts) error {
	name := bpf.NameOf(ebpf.ProgramID(f.XDP.ProgID))
	if name == bpf.ProgramName {
		return fmt.Errorf("%w (XDP program %d): detach it there first", ErrHeld, f.XDP.ProgID)
	}
	return fmt.Errorf("%w (program %d %q): once you know whose it is, remove it with '%s', choose another interface, or have its map of sockets shared ('rscctl attach --help': --xsk-map)", bpf.ErrForeignXDP, f.XDP.ProgID, name, bpf.RemoveXDP(ebpf.ProgramID(f.XDP.ProgID), f.XDP.Off(f.Name)))
}
