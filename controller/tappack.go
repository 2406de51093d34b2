package controller

import (
	"errors"
	"fmt"
	"reflect"

	"golang.org/x/sys/unix"

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
	if err := t.describeTo(a, p, vm); err != nil { // first: who closes a socket that nobody else has waits for the kernel
		return err
	}
	if err := a.up.each(func(q *queue) error { return q.StopPort(a.idx) }); err != nil {
		return err
	}
	a.running = false
	return t.tc.Release()
}

// keep describes the VM for the process after a crash of this one.
func (t *tapKind) keep(a *attachment, b bag, vm *packedVM) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return t.describeTo(a, b, vm)
}

// describeTo describes the VM. The caller holds a.mu.
func (t *tapKind) describeTo(a *attachment, b bag, vm *packedVM) (err error) {
	keep := keeper{bag: b, err: &err}
	vm.Tap = &packedTap{
		Tap: t.proof.Tap, Index: t.proof.Index, Downs: t.proof.Downs, By: t.proof.By, Guest: t.guest, Halt: t.halt, Dropped: t.dropped,
		Bypass: t.bypassed,
	}
	for i, fd := range t.sockets {
		vm.Tap.Sockets = append(vm.Tap.Sockets, keep.fd(fmt.Sprintf("%s.packet%d", a.tag, i), fd))
	}
	var bad, uncounted error
	vm.Tap.Program, bad = keep.program(a.tag+".tc", t.tc.Parts)
	vm.Tap.Program.Outcomes, uncounted = t.tc.Outcomes()
	return errors.Join(err, bad, uncounted)
}

// show describes the VM as pack does.
func (t *tapKind) show(a *attachment, p *parcel.Parcel, vm *packedVM) error { return t.keep(a, p, vm) }

// build opens new ways to the tap, which must be the one that was proved.
func (t *tapKind) build(a *attachment, p *parcel.Parcel, vm *packedVM) (err error) {
	s := vm.Tap
	if s == nil {
		return fmt.Errorf("tap: %w", parcel.ErrMissing)
	}
	parts, err := takeProgram(p, &s.Program)
	if err != nil {
		return err
	}
	t.was = *s
	t.guest, t.proof, t.halt, t.dropped, t.bypassed = s.Guest, netdev.Proved(s.Tap, s.Index, s.Downs, s.By), s.Halt, s.Dropped, s.Bypass
	if t.facts, err = netdev.InspectTap(s.Tap); err == nil && t.facts.Index != s.Index {
		err = errors.New("it was made anew")
	}
	if err != nil {
		parts.Close()
		return fmt.Errorf("tap %s: %w: %w", s.Tap, errMoved, err)
	}
	if err := t.takeSockets(p, s.Sockets); err != nil {
		parts.Close()
		return err
	}
	defer t.closeGiven()
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
	return nil
}

func (t *tapKind) fits(vm *packedVM) bool { return reflect.DeepEqual(t.was.fixed(), vm.Tap.fixed()) }

// fixed is a VM without what changes while frames move.
func (s packedTap) fixed() packedTap {
	s.Program.Outcomes = nil
	return s
}

// takeOver steers to the ways that were opened what the policy steers, and counts what the VM sends.
func (t *tapKind) takeOver(a *attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := t.tc.TakePlace(); err != nil {
		return fmt.Errorf("tap %s: %w", t.facts.Name, err)
	}
	a.running = true
	_, flags := t.rules(a.policy)
	return t.steer(a, flags, a.policy.ExcludePorts)
}

func (t *tapKind) forsake(a *attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.up.each(func(q *queue) error { return q.StopPort(a.idx) })
	if t.tc != nil {
		err = errors.Join(err, t.tc.Release())
		t.tc = nil
	}
	a.running = false
	return err
}

// takeSockets takes the packet sockets, one for each queue.
func (t *tapKind) takeSockets(p *parcel.Parcel, names []string) error {
	for _, name := range names {
		fd, err := p.Take(name, parcel.PacketSocket)
		if err != nil {
			t.closeGiven()
			return err
		}
		t.given = append(t.given, fd)
	}
	return nil
}

// closeGiven closes what no guest has taken.
func (t *tapKind) closeGiven() {
	for _, fd := range t.given {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	t.given = nil
}
