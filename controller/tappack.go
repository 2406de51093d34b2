package controller

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
)

func (t *tapKind) prepare(*Controller, *netdev.Facts) {}

// pack delivers what the workers hold for the VM and closes the ways to its tap: a ring of /dev/vhost-net belongs to the memory of
// the process that made it. What is steered waits in the NIC's rings. The TC program counts on.
func (t *tapKind) pack(a *attachment, p *parcel.Parcel, vm *packedVM) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.up.each(func(q *queue) error { return q.StopPort(a.idx) }); err != nil {
		return err
	}
	a.running = false
	keep := keeper{bag: p, err: &err}
	prog, bad := keep.program(a.req.VM+".tc", t.tc.Parts, t.tc.Outcomes)
	vm.Tap = &packedTap{
		Tap: t.proof.Tap, Index: t.proof.Index, Downs: t.proof.Downs, By: t.proof.By, Guest: t.guest, Halt: t.halt, Dropped: t.dropped,
		Bypass: t.bypassed, Program: prog,
	}
	return errors.Join(err, bad, t.tc.Release())
}

// unpack opens new ways to the tap, which must be the one that was proved, and steers to them what the policy steers.
func (t *tapKind) unpack(a *attachment, p *parcel.Parcel, vm *packedVM) (err error) {
	s := vm.Tap
	if s == nil {
		return fmt.Errorf("tap: %w", parcel.ErrMissing)
	}
	parts, err := takeProgram(p, &s.Program)
	if err != nil {
		return err
	}
	t.guest, t.proof, t.halt, t.dropped, t.bypassed = s.Guest, netdev.Proved(s.Tap, s.Index, s.Downs, s.By), s.Halt, s.Dropped, s.Bypass
	if t.facts, err = netdev.InspectTap(s.Tap); err == nil && t.facts.Index != s.Index {
		err = errors.New("it was made anew")
	}
	if err != nil {
		parts.Close()
		return fmt.Errorf("tap %s: %w: %w", s.Tap, errMoved, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t.chooseWay()
	if err := t.openGuests(a); err != nil {
		parts.Close()
		return err
	}
	o := bpf.TapOptions{Ifindex: t.facts.Index, VLAN: a.addr.VLAN, MAC: a.addr.MAC, Flows: a.flows}
	if t.tc, err = bpf.AdoptTap(o, parts, s.Program.Outcomes); err != nil {
		return fmt.Errorf("tap %s: %w", s.Tap, err)
	}
	a.running = true
	_, flags := t.rules(a.policy)
	return t.steer(a, flags, a.policy.ExcludePorts)
}
