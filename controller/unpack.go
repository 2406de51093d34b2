package controller

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
)

// errMoved means that a VM of a parcel cannot be served now for a reason that is the host's, not the parcel's: it waits.
var errMoved = errors.New("it has changed meanwhile")

// unpacking is what a VM that cannot be unpacked means.
type unpacking int

const (
	allOrNothing  unpacking = iota // the error of unpack: the process that packed it goes on with all
	eachForItself                  // nobody else goes on: it waits, is attached anew, and ends no other
)

// waits tells an error because of which only the VM waits.
func (how unpacking) waits(err error) bool {
	return errors.Is(err, errMoved) || err != nil && how == eachForItself
}

// readPacked decodes a parcel's state.
func readPacked(p *parcel.Parcel) (s packed, err error) {
	if err := json.Unmarshal(p.State, &s); err != nil {
		return s, fmt.Errorf("parcel: state: %w: %w", parcel.ErrDamaged, err)
	}
	return s, nil
}

// unpack goes on with the uplinks of a parcel: with what was built ahead of it, as far as that is still as it was, and builds the rest. With
// an error nothing of them is kept, and nothing of the host was undone. The caller holds mu.
func (c *Controller) unpack(p *parcel.Parcel, s *packed, how unpacking) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.abandonAll())
		}
	}()
	c.ahead.keepFitting(c, s)
	for i := range s.Uplinks {
		one := &s.Uplinks[i]
		err := c.unpackUplink(p, one, how)
		if err != nil && how == eachForItself {
			c.log.Error("interface not taken over: its VMs wait", "iface", one.Iface, "err", err)
			c.leaveOut(one, err.Error())
		} else if err != nil {
			return fmt.Errorf("interface %s: %w", one.Iface, err)
		}
	}
	for _, u := range c.uplinks {
		if err := u.each((*queue).Resume); err != nil {
			return err
		}
	}
	c.movedAt = monotonic()
	c.lookSoon()
	return nil
}

// unpackUplink goes on with an interface and its VMs. Its workers take nothing yet. What there is of it with an error is in c.uplinks.
func (c *Controller) unpackUplink(p *parcel.Parcel, s *packedUplink, how unpacking) (err error) {
	u := c.ahead.takeUplink(s)
	if u == nil {
		if u, err = c.buildUplink(p, s); err != nil {
			return err
		}
	}
	c.uplinks[u.name] = u
	if err := u.begin(s); err != nil {
		return err
	}
	c.pulses.add(u)
	for i := range s.VMs {
		vm := &s.VMs[i]
		err := c.unpackVM(p, u, vm)
		if how.waits(err) {
			c.forgetPort(vm)
			u.log.Error("VM not taken over: it waits", "vm", vm.VM.Name, "err", err)
			if a := u.vms[vm.VM.Name]; a != nil {
				if bad := errors.Join(c.forsake(a), u.removeVM(a)); bad != nil {
					u.log.Error("VM not taken over", "vm", vm.VM.Name, "err", bad)
				}
			}
			c.wait(u.name, vm.VM, err.Error())
			continue
		}
		if err != nil {
			return fmt.Errorf("VM %s: %w", vm.VM.Name, err)
		}
	}
	had := u.host
	u.syncHost()
	if u.host != nil && u.host != had {
		u.host.anew = true
	}
	return nil
}

// leaveOut gives up what there is of an uplink of a parcel that cannot be gone on with: its VMs wait, and their front-ends, whose connections
// end, come again.
func (c *Controller) leaveOut(s *packedUplink, why string) {
	for name, u := range c.uplinks {
		if u.tag == s.Tag {
			c.pulses.remove(u)
			c.note(c.abandon(u))
			delete(c.uplinks, name)
		}
	}
	for i := range s.VMs {
		vm := &s.VMs[i]
		c.forgetPort(vm)
		if !c.waits(vm.VM.Name) {
			c.sweep(&vm.VM)
			c.wait(s.Iface, vm.VM, why)
		}
	}
}

// begin puts the programs, the sockets and the workers of an interface that was built in the place of those of the process before, which
// must have stopped. The workers take nothing yet.
func (u *uplink) begin(s *packedUplink) error {
	for i, n := range s.Generations {
		if i < 0 || i >= maxPorts {
			return fmt.Errorf("generation of port %d: %w", i, parcel.ErrDamaged)
		}
		u.taken[i] = n
	}
	u.warnings = s.Warnings
	for _, d := range u.devs {
		if err := d.prog.TakePlace(); err != nil {
			return u.ofMember(d.facts.Name, err)
		}
	}
	if err := u.beginBond(); err != nil {
		return err
	}
	for id, q := range u.queues {
		q.before = &s.Queues[id].Counted
		if err := u.beginQueue(q); err != nil {
			return err
		}
	}
	u.beginHost(s.Host)
	return nil
}

// beginBond tells the programs of a bond's members which of them are backups now. All else that is new of the bond is followed later.
func (u *uplink) beginBond() error {
	if u.bond == nil {
		return nil
	}
	if b, err := netdev.BondOf(u.facts.Index); err == nil && b != nil {
		u.bond = b
	}
	return u.eachDevice(func(d *device) error {
		m := u.member(d.facts.Index)
		d.backup = m != nil && !m.Active
		return d.prog.SetBackup(d.backup)
	})
}

// unpackVM goes on with a VM. With an error it may be in u.vms.
func (c *Controller) unpackVM(p *parcel.Parcel, u *uplink, vm *packedVM) (err error) {
	a := u.vms[vm.VM.Name]
	if a == nil || !a.ahead { // not built ahead, or there twice
		if a, err = c.buildVM(p, u, vm); err != nil {
			return err
		}
	}
	vm.held = a.held
	a.before, a.partial, a.partialSeen = &vm.Counted, vm.Partial, vm.Counted.Passed[flowtable.ReasonPartialChecksum.String()]
	if err := u.prog.SetFlows(a.id(), a.flows); err != nil {
		return err
	}
	if err := a.kind.takeOver(a); err != nil {
		return err
	}
	a.ahead = false
	return nil
}

// abandonAll gives up all uplinks, and leaves the host and the front-ends to whoever has the parcel. The caller holds mu.
func (c *Controller) abandonAll() error {
	var errs []error
	for name, u := range c.uplinks {
		c.pulses.remove(u)
		errs = append(errs, c.abandon(u))
		delete(c.uplinks, name)
	}
	return errors.Join(errs...)
}

// abandon is abandonAll for one that need not be in use.
func (c *Controller) abandon(u *uplink) error {
	var errs []error
	for _, a := range u.vms {
		if a.ahead {
			errs = append(errs, c.forsake(a))
			continue
		}
		spare := parcel.New("") // packed again, for nobody: the parcel has duplicates of all that it holds
		errs = append(errs, a.kind.pack(a, spare, &packedVM{}))
		spare.Close()
		if index := a.kind.watched(); index != 0 {
			c.watcher.Remove(index)
		}
	}
	c.unwatchUplink(u)
	return errors.Join(append(errs, u.release())...)
}

// ownChanges gives every interface what was changed on the host for it, once the undo list was read, and undoes what is no interface's any
// more. The caller holds mu.
func (c *Controller) ownChanges(s *packed) {
	known := map[uint64]state.Change{}
	for _, ch := range c.state.Changes() {
		known[ch.ID] = ch
	}
	for i := range s.Uplinks {
		var changes []state.Change
		for _, id := range s.Uplinks[i].Changes {
			if ch, ok := known[id]; ok {
				changes = append(changes, ch)
			}
		}
		owned := false
		for _, u := range c.uplinks {
			if u.tag == s.Uplinks[i].Tag {
				owned, u.changes = true, append(u.changes, changes...)
			}
		}
		if !owned { // it was left out
			c.note(errors.Join(c.putBack(changes)...))
		}
	}
}

// takeProgram takes a program's descriptors.
func takeProgram(p *parcel.Parcel, s *packedProgram) (parts bpf.Parts, err error) {
	parts = bpf.Parts{Program: -1, Link: -1, Mode: s.Mode, Object: s.Object, ReadsTag: s.ReadsTag, Maps: map[string]int{}}
	parts.Program, err = p.Take(s.Program, parcel.BPFProgram)
	if err == nil && s.Link != "" {
		parts.Link, err = p.Take(s.Link, parcel.BPFLink)
	}
	for name, file := range s.Maps {
		if err == nil {
			parts.Maps[name], err = p.Take(file, parcel.BPFMap)
		}
	}
	if err != nil {
		parts.Close() // what is -1 is passed over
	}
	return parts, err
}

// takeQueue takes an AF_XDP socket's descriptors.
func takeQueue(p *parcel.Parcel, s *packedQueue) (parts xsk.Parts, err error) {
	var taken []int
	for _, f := range []struct {
		to   *int
		name string
		kind parcel.Kind
	}{{&parts.Socket, s.Socket, parcel.XDPSocket}, {&parts.Umem, s.Umem, parcel.Memory}, {&parts.Owners, s.Owners, parcel.Memory}} {
		if *f.to, err = p.Take(f.name, f.kind); err != nil {
			for _, fd := range taken {
				err = errors.Join(err, unix.Close(fd))
			}
			return parts, err
		}
		taken = append(taken, *f.to)
	}
	return parts, nil
}
