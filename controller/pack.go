package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/flowtable"
)

// settleWithin is how long a hand-over waits for guests without room. What they have not taken by then is dropped and counted.
const settleWithin = 2 * time.Millisecond

// bag takes descriptors in, as duplicates, and gives them names.
type bag interface {
	Keep(what string, fd int) (name string, err error)
}

// pack stops all traffic between two bursts and puts the controller into a parcel: no VM, no front-end and no sender hears of it. From
// then on this process has no uplinks; unpack goes on with them, here or in another process. What this process still has of them is left: release
// takes time, and can wait. stopped is when traffic stopped: what does not change with it is described before. With an error the controller has
// gone on by itself. The caller holds mu.
func (c *Controller) pack() (p *parcel.Parcel, left []*uplink, stopped int64, err error) {
	p = parcel.New(c.opt.Version)
	state, err := c.describePlaces(p)
	if err != nil {
		p.Close()
		return nil, nil, 0, err
	}
	var packedVMs []*attachment
	vms := map[*attachment]*packedVM{}
	goOn := func(err error) error {
		for _, a := range packedVMs {
			err = errors.Join(err, buildAgain(a, p, vms[a]))
		}
		for _, u := range c.uplinks {
			err = errors.Join(err, u.each((*queue).Resume))
		}
		p.Close()
		return err
	}
	stopped = monotonic()
	for _, u := range c.uplinks {
		if err := u.each(func(q *queue) error { return q.Suspend(settleWithin) }); err != nil {
			return nil, nil, 0, goOn(err)
		}
	}
	for _, u := range c.uplinks {
		for _, a := range u.sorted() {
			vm := a.packed()
			vms[a] = vm
			if err := a.kind.pack(a, p, vm); err != nil {
				return nil, nil, 0, goOn(fmt.Errorf("VM %s: %w", a.req.VM, err))
			}
			packedVMs = append(packedVMs, a)
		}
	}
	if err = c.describeMoving(&state, vms); err == nil {
		p.State, err = json.Marshal(state)
	}
	if err != nil {
		return nil, nil, 0, goOn(err)
	}
	left = slices.Collect(maps.Values(c.uplinks))
	for _, u := range left {
		c.pulses.remove(u)
		if err := u.each(func(q *queue) error { return q.Stop() }); err != nil { // its last act is one on rings that are another's soon
			u.log.Warn("hand over: stop", "err", err)
		}
	}
	clear(c.uplinks)
	return p, left, stopped, nil
}

// release closes what this process still has of uplinks that were packed.
func (c *Controller) release(left []*uplink) {
	for _, u := range left {
		if err := u.release(); err != nil { // the parcel has what it needs; what does not close ends with the process
			u.log.Warn("hand over: release", "err", err)
		}
		c.unwatchUplink(u)
	}
}

// bindsAnew tells whether an heir makes new sockets for some queue: it can bind them once those of this process are closed.
func (u *uplink) bindsAnew() bool {
	return slices.ContainsFunc(u.queues, func(q *queue) bool { return !q.adoptable })
}

// packed is what is known of a VM beside its kind and its counts.
func (a *attachment) packed() *packedVM {
	return &packedVM{Tag: a.tag, VM: a.saved(), Index: a.idx, Generation: a.gen, Partial: a.partial}
}

// describe is the state of a parcel. vms holds what is known already of each VM. Counts of a worker that does not answer are left out.
func (c *Controller) describe(b bag, vms map[*attachment]*packedVM) (s packed, err error) {
	s, err = c.describePlaces(b)
	return s, errors.Join(err, c.describeMoving(&s, vms))
}

// describePlaces describes what stays the same while frames move, with its descriptors: all but the VMs and what is counted. The caller holds mu.
func (c *Controller) describePlaces(b bag) (s packed, err error) {
	s = packed{State: c.opt.State, Socket: c.opt.Socket, BPFFS: c.opt.BPFFS, Started: c.started, Tags: c.tags, Watchdog: c.opt.Watchdog, Hears: true}
	if c.survivor != nil {
		s.Process, s.Store, s.Kept = c.survivor.process, c.opt.Store.Path(), c.keptNames()
	}
	keep := keeper{bag: b, err: &err}
	s.Lock = keep.fd("lock", c.state.LockFD())
	s.Control = packedListener{FD: keep.conn("control", c.listener), ID: c.listener.ID()}
	if c.scrapes != nil {
		s.Metrics, s.Scrapes = c.opt.Metrics, keep.conn("metrics", c.scrapes)
	}
	if c.pinsLock != nil {
		s.Pins = keep.file("pins", int(c.pinsLock.Fd()))
	}
	if c.flows != nil && c.flowsPin == "" {
		s.Flows = keep.fd(fmt.Sprintf("flows.%d", c.flows.ID()), c.flows.FD())
	}
	for _, name := range slices.Sorted(maps.Keys(c.uplinks)) {
		u, bad := c.uplinks[name].describe(&keep)
		err = errors.Join(err, bad)
		s.Uplinks = append(s.Uplinks, u)
	}
	return s, err
}

// describeMoving adds what changes while frames move. The interfaces are those of describePlaces.
func (c *Controller) describeMoving(s *packed, vms map[*attachment]*packedVM) (err error) {
	for i := range s.Uplinks {
		one := &s.Uplinks[i]
		err = errors.Join(err, c.uplinks[one.Iface].count(one, vms))
	}
	return err
}

func (u *uplink) describe(keep *keeper) (packedUplink, error) {
	s := packedUplink{
		Tag: u.tag, Iface: u.name, Index: u.facts.Index, RxQueues: u.facts.RxQueues, ChunkSize: u.chunk, Rings: u.rings, Native: u.devs[0].native, Warnings: u.warnings,
		Generations: map[int]uint32{},
	}
	for i, n := range u.taken {
		if n > 0 {
			s.Generations[i] = n
		}
	}
	for _, ch := range u.changes {
		s.Changes = append(s.Changes, ch.ID)
	}
	var errs []error
	var err error
	if own := ours(u.prog); own != nil {
		s.Program, err = keep.program(u.tag+".xdp", own.Parts)
		errs = append(errs, err)
	} else {
		s.Foreign = u.foreign.describe(keep, u.tag)
	}
	s.Multicast = keep.fd(u.tag+".group", u.mcast.FD())
	if s.Devices, err = u.describeDevices(keep); err != nil {
		errs = append(errs, err)
	}
	if s.Host, err = u.describeHost(keep); err != nil {
		errs = append(errs, err)
	}
	for _, q := range u.queues {
		one, tag := u.placed(q), fmt.Sprintf("%s.q%d", u.tag, q.id)
		one.Wire = keep.fd(tag+".wire", q.wire.FD())
		if q.adoptable {
			parts := q.sock.Parts()
			one.Socket, one.Umem, one.Owners = keep.fd(tag+".xsk", parts.Socket), keep.fd(tag+".umem", parts.Umem), keep.fd(tag+".owners", parts.Owners)
		}
		s.Queues = append(s.Queues, one)
	}
	return s, errors.Join(errs...)
}

// count adds to an uplink's description what is counted, who is behind the host, and the VMs.
func (u *uplink) count(s *packedUplink, vms map[*attachment]*packedVM) error {
	var errs []error
	for i, d := range u.devs {
		own := ours(d.prog)
		if own == nil {
			continue
		}
		of := &s.Program
		if i > 0 {
			of = &s.Devices[i].Program
		}
		var err error
		of.Outcomes, err = own.Outcomes()
		errs = append(errs, err)
	}
	if s.Host != nil {
		for _, a := range u.host.stations.Learned(u.clock()) {
			s.Host.Stations = append(s.Host.Stations, packedStation{a.VLAN, a.MAC})
		}
	}
	looked := u.look()
	for i := range s.Queues {
		s.Queues[i].Counted = looked[i].Counted()
	}
	counted := report.Uplink{Name: u.name, Queues: looked}
	for _, a := range u.sorted() {
		vm := vms[a]
		vm.Counted = carried(counted.Counted(&report.VM{Index: a.idx, Port: api.Port{VM: a.req.VM}, Before: a.before}))
		s.VMs = append(s.VMs, *vm)
	}
	return errors.Join(errs...)
}

// describeDevices describes the members of a bond, and nothing of another interface.
func (u *uplink) describeDevices(keep *keeper) (out []packedDevice, err error) {
	if u.bond == nil {
		return nil, nil
	}
	for i, d := range u.devs {
		one := packedDevice{Index: d.facts.Index, RxQueues: d.facts.RxQueues, Native: d.native}
		if i > 0 {
			var bad error
			own := ours(d.prog)
			one.Program, bad = keep.program(fmt.Sprintf("%s.d%d.xdp", u.tag, d.facts.Index), own.Parts)
			err = errors.Join(err, bad)
		}
		out = append(out, one)
	}
	return out, err
}

// placed says of which device a queue is, where that has to be said.
func (u *uplink) placed(q *queue) packedQueue {
	if u.bond == nil {
		return packedQueue{}
	}
	return packedQueue{ID: q.id, Device: q.dev.facts.Index, NIC: q.nic}
}

// carried is what goes on of a VM's counts. What is held is lost with the process.
func carried(s api.VMStats) api.VMStats {
	if s.Held > 0 {
		s.Dropped[flowtable.ReasonPortDown.String()] += s.Held
		s.Held = 0
	}
	return s
}

// release closes what this process has of an uplink, and takes nothing off the interface.
func (u *uplink) release() error {
	var errs []error
	stopped := true
	for _, q := range u.queues {
		err := q.close()
		stopped = stopped && err == nil
		errs = append(errs, err)
	}
	if u.mcast != nil && stopped {
		errs = append(errs, u.mcast.Close())
	}
	if stopped {
		errs = append(errs, u.forgetHost())
	}
	errs = append(errs, u.eachDevice(func(d *device) error { return d.prog.Release() }))
	return errors.Join(errs...)
}

// keeper puts descriptors into a bag, and remembers the first error.
type keeper struct {
	bag bag
	err *error
}

func (k *keeper) note(err error) {
	if *k.err == nil {
		*k.err = err
	}
}

func (k *keeper) fd(what string, fd int) (name string) {
	name, err := k.bag.Keep(what, fd)
	k.note(err)
	return name
}

// file is fd for what may be another one the next time: another folder, a socket on another address.
func (k *keeper) file(what string, fd int) (name string) {
	id, _ := idOf(fd)
	return k.fd(fmt.Sprintf("%s.%x", what, id.ino), fd)
}

// conn is file for a listener.
func (k *keeper) conn(what string, l net.Listener) (name string) {
	c, ok := l.(syscall.Conn)
	if !ok {
		k.note(fmt.Errorf("%s: %T has no descriptor", what, l))
		return ""
	}
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { name = k.file(what, int(fd)) })
	}
	k.note(err)
	return name
}

// program keeps the parts of a BPF program, all but what it has counted.
func (k *keeper) program(what string, parts func() (bpf.Parts, error)) (s packedProgram, err error) {
	p, err := parts()
	if err != nil {
		return s, err
	}
	s.Mode, s.Object, s.ReadsTag, s.Maps = p.Mode, p.Object, p.ReadsTag, map[string]string{}
	s.Program = k.fd(fmt.Sprintf("%s.%d", what, p.IDs[""]), p.Program)
	if p.Link >= 0 {
		s.Link, s.LinkID = k.fd(fmt.Sprintf("%s.link.%d", what, p.LinkID), p.Link), p.LinkID
	}
	for _, name := range slices.Sorted(maps.Keys(p.Maps)) {
		s.Maps[name] = k.fd(fmt.Sprintf("%s.%s.%d", what, name, p.IDs[name]), p.Maps[name])
	}
	return s, nil
}
