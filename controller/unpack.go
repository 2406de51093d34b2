package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/tap"
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

// unpack goes on with the uplinks of a parcel. With an error nothing of them is kept, and nothing of the host was undone. The caller
// holds mu.
func (c *Controller) unpack(p *parcel.Parcel, s *packed, how unpacking) (err error) {
	var opened []*uplink
	defer func() {
		if err == nil {
			return
		}
		for _, u := range opened {
			c.pulses.remove(u)
			err = errors.Join(err, u.abandon())
			c.unwatchUplink(u)
			delete(c.uplinks, u.name)
		}
	}()
	for i := range s.Uplinks {
		u, err := c.unpackUplink(p, &s.Uplinks[i])
		if err != nil {
			return fmt.Errorf("interface %s: %w", s.Uplinks[i].Iface, err)
		}
		opened = append(opened, u)
		c.uplinks[u.name] = u
		c.pulses.add(u)
		if err := c.unpackVMs(p, u, s.Uplinks[i].VMs, how); err != nil {
			return fmt.Errorf("interface %s: %w", u.name, err)
		}
		if err := c.watchAgain(u); err != nil {
			return err
		}
	}
	for _, u := range opened {
		if err := u.each((*queue).Resume); err != nil {
			return err
		}
	}
	c.lookSoon()
	return nil
}

// unpackUplink goes on with an interface. Its workers run and take nothing yet.
func (c *Controller) unpackUplink(p *parcel.Parcel, s *packedUplink) (u *uplink, err error) {
	at, err := stillThere(s)
	if err != nil {
		return nil, err
	}
	f := at.facts
	u = &uplink{tag: s.Tag, name: f.Name, facts: f, bond: at.bond, chunk: s.ChunkSize, rings: s.Rings, slots: c.opt.Sizes.slots(), tune: c.tuning(), log: c.log.With("iface", f.Name), vms: map[string]*attachment{}, flows: c.flows,
		began: time.Now(), steering: map[uint32]bool{}, warnings: s.Warnings, changes: c.changesByID(s.Changes)}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.abandon())
			u = nil
		}
	}()
	for i, n := range s.Generations {
		if i < 0 || i >= maxPorts {
			return u, fmt.Errorf("generation of port %d: %w", i, parcel.ErrDamaged)
		}
		u.taken[i] = n
	}
	ready := c.ready[s.Index]
	for i, packed := range s.devices() {
		d := &device{facts: at.devs[i], native: packed.Native}
		if d.prog, err = unpackProgram(p, &packed, ready, u.prog); err != nil {
			return u, err
		}
		u.addDevice(d)
	}
	if err := u.atUnpack(); err != nil {
		return u, err
	}
	fd, err := p.Take(s.Multicast, parcel.PacketSocket)
	if err != nil {
		return u, err
	}
	if u.mcast, err = netdev.AdoptMulticast(fd, f.Index); err != nil {
		return u, err
	}
	for id := range s.Queues {
		place, err := u.place(s, id)
		if err != nil {
			return u, err
		}
		q, err := u.unpackQueue(p, place, &s.Queues[id], ready.queue(id), c.lookSoon)
		if err != nil {
			return u, err
		}
		u.queues = append(u.queues, q)
	}
	return u, nil
}

// watchAgain begins to follow an interface that was followed by a process before.
func (c *Controller) watchAgain(u *uplink) error {
	_, err := c.watcher.Add(u.name)
	for _, d := range u.devs {
		if u.bond != nil && err == nil {
			_, err = c.watcher.Add(d.facts.Name)
		}
	}
	return err
}

// unpackProgram goes on with an interface's program: this version's, which was made ready before the other stopped, or is now.
func unpackProgram(p *parcel.Parcel, s *packedDevice, ready *readied, beside *bpf.Program) (prog *bpf.Program, err error) {
	if prog = ready.program(s.Program.LinkID); prog == nil { // also when the interface's program was attached anew meanwhile
		if prog, err = adoptProgram(p, s, beside); err != nil {
			return nil, err
		}
	}
	if err := prog.TakePlace(); err != nil {
		return nil, errors.Join(err, prog.Release())
	}
	return prog, nil
}

// adoptProgram loads this version's program over the maps of a parcel's. It does not take its place.
func adoptProgram(p *parcel.Parcel, s *packedDevice, beside *bpf.Program) (*bpf.Program, error) {
	parts, err := takeProgram(p, &s.Program)
	if err != nil {
		return nil, err
	}
	return bpf.Adopt(bpf.LoadOptions{Ifindex: s.Index, Queues: s.RxQueues, Native: s.Native, Beside: beside}, parts, s.Program.Outcomes)
}

// stillThere looks at the interface of a parcel, which may have another name by now.
func stillThere(s *packedUplink) (*site, error) {
	link, err := net.InterfaceByIndex(s.Index)
	if err != nil {
		return nil, err
	}
	f, err := netdev.Inspect(link.Name)
	switch {
	case err != nil:
		return nil, err
	case len(s.Devices) > 0:
		return membersStillThere(s, f)
	case f.Index != s.Index || f.RxQueues != s.RxQueues || len(s.Queues) != s.RxQueues:
		return nil, fmt.Errorf("%w: it has %d receive queues, and had %d", errMoved, f.RxQueues, s.RxQueues)
	}
	return &site{facts: f, devs: []*netdev.Facts{f}}, nil
}

// membersStillThere is stillThere for a bond. Members that have come or left are followed later.
func membersStillThere(s *packedUplink, f *netdev.Facts) (*site, error) {
	b, err := netdev.BondOf(f.Index)
	if err == nil && b == nil {
		err = fmt.Errorf("%w: it is no bond any more", errMoved)
	}
	if err != nil {
		return nil, err
	}
	at, queues := &site{facts: f, bond: b}, 0
	for _, d := range s.Devices {
		now, err := netdev.InspectIndex(d.Index)
		if err == nil && now.RxQueues != d.RxQueues {
			err = fmt.Errorf("%w: its member %s has %d receive queues, and had %d", errMoved, now.Name, now.RxQueues, d.RxQueues)
		}
		if err != nil {
			return nil, err
		}
		at.devs, queues = append(at.devs, now), queues+d.RxQueues
	}
	if queues != len(s.Queues) {
		return nil, fmt.Errorf("%d queues of %d: %w", len(s.Queues), queues, parcel.ErrDamaged)
	}
	return at, nil
}

// atUnpack tells the programs of a bond's members which of them are backups now.
func (u *uplink) atUnpack() error {
	return u.eachDevice(func(d *device) error {
		m := u.member(d.facts.Index)
		d.backup = m != nil && !m.Active
		return d.prog.SetBackup(d.backup)
	})
}

// place is where a queue of a parcel is.
func (u *uplink) place(s *packedUplink, i int) (queuePlace, error) {
	d, id, nic := s.place(i)
	if d == nil || nic < 0 || nic >= d.RxQueues {
		return queuePlace{}, fmt.Errorf("queue %d: %w", i, parcel.ErrDamaged)
	}
	return queuePlace{id, u.device(d.Index), nic}, nil
}

// unpackQueue goes on with a queue's socket, or opens one where the kernel does not let that be: what waited in the other one is lost.
func (u *uplink) unpackQueue(p *parcel.Parcel, at queuePlace, s *packedQueue, ready readiedQueue, trouble func()) (*queue, error) {
	var sock *xsk.Socket
	var parts xsk.Parts
	var err error
	if s.Socket == "" {
		sock, err = xsk.Open(u.queueConfig(at))
	} else if parts, err = takeQueue(p, s); err == nil {
		cfg := u.queueConfig(at)
		cfg.Ahead = ready.umem
		sock, err = xsk.Adopt(cfg, parts)
	}
	if err != nil {
		return nil, err
	}
	wire, err := u.unpackWire(p, s)
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	return u.startQueue(at, sock, wire, &s.Counted, ready.worker, trouble)
}

// unpackWire goes on with a queue's packet socket, or opens one where the parcel is of a version that had none.
func (u *uplink) unpackWire(p *parcel.Parcel, s *packedQueue) (*tap.Uplink, error) {
	if s.Wire == "" {
		return tap.OpenUplink(u.facts.Index)
	}
	fd, err := p.Take(s.Wire, parcel.PacketSocket)
	if err != nil {
		return nil, err
	}
	return tap.AdoptUplink(fd, u.facts.Index)
}

// unpackVMs goes on with the VMs of an uplink. One that cannot be served any more because of its host waits.
func (c *Controller) unpackVMs(p *parcel.Parcel, u *uplink, list []packedVM, how unpacking) error {
	for i := range list {
		vm := &list[i]
		err := c.unpackVM(p, u, vm, how)
		if how.waits(err) {
			c.forgetPort(vm)
			u.log.Error("VM not taken over: it waits", "vm", vm.VM.Name, "err", err)
			c.wait(u.name, vm.VM, err.Error())
			continue
		}
		if err != nil {
			return fmt.Errorf("VM %s: %w", vm.VM.Name, err)
		}
	}
	return nil
}

func (c *Controller) unpackVM(p *parcel.Parcel, u *uplink, vm *packedVM, how unpacking) error {
	a, err := c.checkPacked(attachAgain(u.name, vm.VM))
	if err != nil {
		return err
	}
	if vm.Index >= maxPorts || u.byIdx[vm.Index] != nil {
		return fmt.Errorf("port %d: %w", vm.Index, parcel.ErrDamaged)
	}
	a.tag, a.idx, a.gen, a.up, a.log = vm.Tag, vm.Index, vm.Generation, u, u.log.With("vm", a.req.VM)
	a.before, a.partial, a.partialSeen = &vm.Counted, vm.Partial, vm.Counted.Passed[flowtable.ReasonPartialChecksum.String()]
	err = u.each(func(q *queue) error { return q.Add(a.portConfig()) })
	if err == nil {
		err = u.countFlows(a)
	}
	if err == nil {
		a.kind.prepare(c, u.facts)
		err = a.kind.unpack(a, p, vm)
	}
	if err != nil {
		if how.waits(err) {
			return errors.Join(err, u.removeVM(a))
		}
		return err
	}
	u.vms[a.req.VM], u.byIdx[a.idx] = a, a
	if a.kind.watched() != 0 {
		if _, err := c.watcher.Add(a.kind.to()); err != nil {
			a.log.Warn("watch", "err", err)
		}
	}
	return nil
}

// abandon gives up an uplink that could not be unpacked whole, and leaves the host and the front-ends to whoever has the parcel.
func (u *uplink) abandon() error {
	var errs []error
	for _, a := range u.vms { // packed again, for nobody: the parcel has duplicates of all that it holds
		spare := parcel.New("")
		errs = append(errs, a.kind.pack(a, spare, &packedVM{}))
		spare.Close()
	}
	return errors.Join(append(errs, u.release())...)
}

// changesByID are those entries of the undo list.
func (c *Controller) changesByID(ids []uint64) (out []state.Change) {
	known := map[uint64]state.Change{}
	for _, ch := range c.state.Changes() {
		known[ch.ID] = ch
	}
	for _, id := range ids {
		if ch, ok := known[id]; ok {
			out = append(out, ch)
		}
	}
	return out
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
