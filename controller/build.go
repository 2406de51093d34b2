package controller

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/vhost/tap"
)

// To build is to make all that an uplink or a VM of a parcel needs, one step before anything is touched that the process before uses as well:
// its rings, the interface's program, the maps, the front-end. So it may be done while that one works, or once it has stopped. What was built
// begins by uplink.begin and kind.takeOver, or is given up by abandon and forsake.

// buildUplink builds an interface without its VMs. Its workers are not started.
func (c *Controller) buildUplink(p *parcel.Parcel, s *packedUplink) (u *uplink, err error) {
	at, err := stillThere(s)
	if err != nil {
		return nil, err
	}
	if c.flows == nil && len(s.VMs) > 0 {
		return nil, fmt.Errorf("flow maps: %w", parcel.ErrMissing)
	}
	f := at.facts
	u = &uplink{tag: s.Tag, name: f.Name, facts: f, bond: at.bond, chunk: s.ChunkSize, rings: s.Rings, slots: c.opt.Sizes.slots(), tune: c.tuning(), log: c.log.With("iface", f.Name), vms: map[string]*attachment{}, flows: c.flows,
		began: time.Now(), steering: map[uint32]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.abandon(u))
			u = nil
		}
	}()
	for i, packed := range s.devices() {
		d := &device{facts: at.devs[i], native: packed.Native}
		if s.Foreign != nil {
			err = u.adoptForeign(p, s.Foreign, d)
		} else {
			err = c.buildProgram(p, u, &packed, d)
		}
		if err != nil {
			return u, u.ofMember(d.facts.Name, err)
		}
		u.addDevice(d)
	}
	fd, err := p.Take(s.Multicast, parcel.PacketSocket)
	if err != nil {
		return u, err
	}
	if u.mcast, err = netdev.AdoptMulticast(fd, f.Index); err != nil {
		return u, err
	}
	if err := u.buildHost(p, s.Host); err != nil { // made anew once the VMs are here
		u.log.Warn("hand over", "err", err)
	}
	for i := range s.Queues {
		place, err := u.place(s, i)
		if err != nil {
			return u, err
		}
		q, err := u.buildQueue(p, place, &s.Queues[i], c.lookSoon)
		if err != nil {
			return u, u.ofMember(place.dev.facts.Name, err)
		}
		u.queues = append(u.queues, q)
	}
	if u.host != nil { // what takes time
		u.lookForOwn(netdev.AddressesOn)
		u.withoutHost(u.giveHost())
	}
	return u, c.watchAgain(u)
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

// buildProgram gives a device our program: the one that was loaded ahead, or one that is loaded now, also where it was attached anew meanwhile.
func (c *Controller) buildProgram(p *parcel.Parcel, u *uplink, s *packedDevice, d *device) (err error) {
	own := c.ahead.takeProgram(s)
	if own == nil {
		own, err = adoptProgram(p, s, ours(u.prog), u.rings.Frames > 0)
	}
	if err == nil {
		d.prog = own
	}
	return err
}

// adoptProgram loads this version's program over the maps of a parcel's. It does not take its place.
func adoptProgram(p *parcel.Parcel, s *packedDevice, beside *bpf.Program, jumbo bool) (*bpf.Program, error) {
	parts, err := takeProgram(p, &s.Program)
	if err != nil {
		return nil, err
	}
	return bpf.Adopt(bpf.LoadOptions{Ifindex: s.Index, Queues: s.RxQueues, Native: s.Native, Beside: beside, Jumbo: jumbo}, parts, s.Program.Outcomes)
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
	case len(s.Devices) > 0 && s.Foreign == nil:
		return membersStillThere(s, f)
	case f.Index != s.Index || f.RxQueues != s.RxQueues || len(s.Queues) != s.served():
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

// place is where a queue of a parcel is.
func (u *uplink) place(s *packedUplink, i int) (queuePlace, error) {
	d, id, nic := s.place(i)
	if d == nil || nic < 0 || nic >= d.RxQueues {
		return queuePlace{}, fmt.Errorf("queue %d: %w", i, parcel.ErrDamaged)
	}
	return queuePlace{id, u.device(d.Index), nic}, nil
}

// buildQueue builds a queue with its sockets, or a new one where the kernel does not let that be: what waits in the other one is lost.
func (u *uplink) buildQueue(p *parcel.Parcel, at queuePlace, s *packedQueue, trouble func()) (*queue, error) {
	var sock *xsk.Socket
	var parts xsk.Parts
	var err error
	if s.Socket == "" {
		sock, err = xsk.OpenAhead(u.queueConfig(at))
	} else if parts, err = takeQueue(p, s); err == nil {
		sock, err = xsk.AdoptAhead(u.queueConfig(at), parts)
	}
	if err != nil {
		return nil, err
	}
	wire, err := u.adoptWire(p, s)
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	return u.makeQueue(at, sock, wire, true, trouble)
}

// adoptWire takes a queue's packet socket, or opens one where the parcel is of a version that had none.
func (u *uplink) adoptWire(p *parcel.Parcel, s *packedQueue) (*tap.Uplink, error) {
	if s.Wire == "" {
		return tap.OpenUplink(u.facts.Index)
	}
	fd, err := p.Take(s.Wire, parcel.PacketSocket)
	if err != nil {
		return nil, err
	}
	return tap.AdoptUplink(fd, u.facts.Index)
}

// buildAgain goes on with a VM that this very process has packed.
func buildAgain(a *attachment, p *parcel.Parcel, vm *packedVM) error {
	if err := a.kind.build(a, p, vm); err != nil {
		return err
	}
	return a.kind.takeOver(a)
}

// buildVM builds a VM, which is in u.vms then.
func (c *Controller) buildVM(p *parcel.Parcel, u *uplink, vm *packedVM) (*attachment, error) {
	a, err := c.checkRequest(attachAgain(u.name, vm.VM))
	if err != nil {
		return nil, err
	}
	if vm.Index >= maxPorts || u.byIdx[vm.Index] != nil || u.vms[vm.VM.Name] != nil {
		return nil, fmt.Errorf("port %d: %w", vm.Index, parcel.ErrDamaged)
	}
	a.tag, a.idx, a.gen, a.up, a.log, a.ahead = vm.Tag, vm.Index, vm.Generation, u, u.log.With("vm", a.req.VM), true
	u.vms[a.req.VM], u.byIdx[a.idx] = a, a
	err = u.each(func(q *queue) error { return q.Add(a.portConfig()) })
	if err == nil && u.foreign == nil {
		a.flows, err = u.flows.VM(a.req.VM)
	}
	if err == nil {
		a.kind.prepare(c, u.facts)
		err = a.kind.build(a, p, vm)
		a.held = vm.held
	}
	if err == nil && a.kind.watched() != 0 {
		if _, err := c.watcher.Add(a.kind.to()); err != nil {
			a.log.Warn("watch", "err", err)
		}
	}
	return a, err
}

// forsake gives up what was built of a VM and did not begin, or not wholly. Its front-end and the maps are as they were.
func (c *Controller) forsake(a *attachment) error {
	if !a.ahead {
		return nil
	}
	a.ahead = false
	if index := a.kind.watched(); index != 0 {
		c.watcher.Remove(index)
	}
	return a.kind.forsake(a)
}

// dropBuilt takes a VM that was built and did not begin off its uplink.
func (c *Controller) dropBuilt(a *attachment) error {
	err := c.forsake(a)
	u := a.up
	delete(u.vms, a.req.VM)
	u.byIdx[a.idx] = nil
	u.flows.Reopen(a.req.VM)
	return errors.Join(err, u.each(func(q *queue) error { return q.Remove(a.idx) }))
}
