package controller

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost/tap"
)

// A bond is an uplink whose devices are its members. What comes in by a member's queues is for the same VMs; what they send, and the entries
// of the receive filter, go to the bond, and the kernel's bond driver has them at the right members.

const (
	announceLooks = 3                // looks after a fail-over, or a bond's link coming up, at which it is told where the VMs are
	unservedFor   = 10 * time.Second // so long a member that could not be served is not tried again
)

// unserved is a bond's member by which no VM gets frames.
type unserved struct {
	name, why string
	at        time.Time // when it was tried
}

// inspectMembers looks at the members of a bond. One that cannot be served is an error: its VMs would lose what comes in by it.
func inspectMembers(members []netdev.Member) (out []*netdev.Facts, err error) {
	for _, m := range members {
		f, err := inspectMember(m)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func inspectMember(m netdev.Member) (*netdev.Facts, error) {
	f, err := netdev.InspectIndex(m.Index)
	if err == nil && f.XDP.Attached {
		err = foreignXDP(f)
	}
	if err != nil {
		return nil, fmt.Errorf("member %s: %w", m.Name, err)
	}
	return f, nil
}

// ofMember says of an error which member it is about. On an interface that is no bond there is none.
func (u *uplink) ofMember(name string, err error) error {
	if u.bond == nil {
		return err
	}
	return fmt.Errorf("member %s: %w", name, err)
}

// member is what is known of a bond's member, nil for an interface that is none.
func (u *uplink) member(index int) *netdev.Member {
	if u.bond == nil {
		return nil
	}
	return u.bond.Find(index)
}

// device is the one with that ifindex, nil when there is none.
func (u *uplink) device(index int) *device {
	for _, d := range u.devs {
		if d.facts.Index == index {
			return d
		}
	}
	return nil
}

// freeQueue is the lowest number that no worker has, of these neither.
func (u *uplink) freeQueue(beside ...*queue) (id int) {
	for all := slices.Concat(u.queues, beside); slices.ContainsFunc(all, func(q *queue) bool { return q.id == id }); {
		id++
	}
	return id
}

// wayOut is the queue as its worker uses it: frames of VMs leave a bond by a packet socket on it.
func (u *uplink) wayOut(q *queue) (_ datapath.NIC, err error) {
	if u.bond == nil {
		return q.sock, nil
	}
	if q.out, err = tap.OpenPacket(u.facts.Index); err != nil {
		return nil, err
	}
	if err := q.out.SetMark(meta.HostMark); err != nil {
		return nil, err
	}
	return datapath.NewSocketNIC(q.sock, q.out), nil
}

// followBonds looks whether a bond has other members. The caller holds mu.
func (c *Controller) followBonds() (changed bool) {
	for _, u := range c.uplinks {
		if u.bond == nil {
			continue
		}
		b, err := c.host.BondOf(u.facts.Index)
		if err != nil || b == nil || !slices.Equal(b.Members, u.bond.Members) || b.Mode != u.bond.Mode {
			c.checkUplink(u)
			changed = true
		}
	}
	return changed
}

// followBond follows a bond's members and their states. It reports false when the interface was given back.
func (c *Controller) followBond(u *uplink) (goesOn bool) {
	b, err := c.host.BondOf(u.facts.Index)
	why := ""
	switch {
	case err != nil: // about asking; that it is gone was looked at
		u.log.Warn("bond: look", "err", err)
		return true
	case b == nil:
		why = "it is no bond any more"
	case b.Mode != u.bond.Mode:
		why = fmt.Sprintf("the bond's mode changed from %s to %s", u.bond.Mode, b.Mode)
	case len(b.Members) == 0:
		why = "the bond has no members"
	}
	if why != "" {
		c.sleepUplink(u, why)
		return false
	}
	was := u.bond
	u.bond = b
	if err := u.followBackups(); err != nil {
		c.sleepUplink(u, err.Error())
		return false
	}
	if err := c.followMembers(u); err != nil {
		u.log.Error("bond: members", "err", err)
		if c.uplinks[u.name] == u {
			c.sleepUplink(u, err.Error())
		}
		return false
	}
	u.followFailOver(was)
	return true
}

// followBackups leaves what comes in by backups to the bond, and takes it from active members.
func (u *uplink) followBackups() error {
	return u.eachDevice(func(d *device) error {
		m := u.bond.Find(d.facts.Index)
		if m == nil || d.backup == !m.Active {
			return nil
		}
		d.backup = !m.Active
		return d.prog.SetBackup(d.backup)
	})
}

// followFailOver makes it known where the VMs are when another member became the active one.
func (u *uplink) followFailOver(was *netdev.Bond) {
	if u.bond.Mode == netdev.ActiveBackup {
		for _, m := range u.bond.Members {
			if old := was.Find(m.Index); m.Active && (old == nil || !old.Active) {
				u.linkSays(slog.LevelInfo, "the active member is "+m.Name)
				u.announce = announceLooks
			}
		}
	}
	if u.announce == 0 {
		return
	}
	u.announce--
	if err := netdev.Announce(u.facts.Index, u.stations()); err != nil {
		u.log.Warn("bond: the VMs' addresses were not announced", "err", err)
	}
}

// followMembers takes in members that have come and lets go of those that have left. The VMs stay. With an error the uplink is not whole.
func (c *Controller) followMembers(u *uplink) error {
	var gone []*device
	for _, d := range u.devs {
		now, err := c.host.InspectIndex(d.facts.Index)
		if u.bond.Find(d.facts.Index) == nil || errors.Is(err, netdev.ErrNoDevice) || err == nil && now.RxQueues != d.facts.RxQueues {
			gone = append(gone, d) // with other queues it is opened anew
		}
	}
	for index := range u.unserved {
		if u.bond.Find(index) == nil {
			delete(u.unserved, index)
		}
	}
	var fresh []*device
	var queues []*queue
	for _, m := range u.bond.Members {
		if d := u.device(m.Index); d != nil && !slices.Contains(gone, d) {
			continue
		}
		if x, known := u.unserved[m.Index]; known && time.Since(x.at) < unservedFor {
			continue
		}
		if old := u.device(m.Index); old != nil { // its place on the interface is taken until it is gone
			if err := c.regroup(u, []*device{old}, nil, nil); err != nil {
				return err
			}
			gone = slices.DeleteFunc(gone, func(d *device) bool { return d == old })
		}
		d, qs, err := c.openMember(u, m, queues)
		if err != nil {
			if u.unserved[m.Index].why != err.Error() {
				u.log.Error("member not served: what comes in by it for VMs is lost", "member", m.Name, "err", err)
			}
			if u.unserved == nil {
				u.unserved = map[int]unserved{}
			}
			u.unserved[m.Index] = unserved{m.Name, err.Error(), time.Now()}
			continue
		}
		delete(u.unserved, m.Index)
		fresh, queues = append(fresh, d), append(queues, qs...)
	}
	if len(gone)+len(fresh) == 0 && len(u.devs) > 0 {
		return nil
	}
	return c.regroup(u, gone, fresh, queues)
}

// openMember opens a member that has come. Its workers take nothing until Resume. beside are the queues of members before it.
func (c *Controller) openMember(u *uplink, m netdev.Member, beside []*queue) (d *device, queues []*queue, err error) {
	f, err := inspectMember(m)
	if err != nil {
		return nil, nil, err
	}
	fix := slices.ContainsFunc(u.sorted(), func(a *attachment) bool { return a.req.FixOffloads })
	todo, _, err := planOffloads(f, fix)
	if err != nil {
		return nil, nil, err
	}
	done, err := c.applyChanges(u.name, todo)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		for _, q := range queues {
			err = errors.Join(err, q.close())
		}
		if d != nil {
			err = errors.Join(err, d.prog.Close())
		}
		err = errors.Join(append(c.putBack(done), err)...)
		d, queues = nil, nil
	}()
	room, err := roomFor(f, multiBuffer)
	if err == nil {
		err = u.room().takes(room, u.name)
	}
	if err != nil {
		return nil, nil, err
	}
	if d, err = u.openDevice(f); err != nil {
		return nil, nil, err
	}
	if err := d.checkTags(); err != nil {
		return d, nil, err
	}
	for nic := range f.RxQueues {
		q, err := u.openQueue(queuePlace{u.freeQueue(slices.Concat(beside, queues)...), d, nic}, true, c.lookSoon)
		if err != nil {
			return d, queues, err
		}
		queues = append(queues, q)
	}
	if now, err := c.watcher.Add(f.Name); err == nil {
		d.facts = now
	}
	if err := c.state.Forget(u.keepChanges(done)...); err != nil {
		u.log.Warn("noted twice on the undo list", "err", err)
	}
	return d, queues, nil
}

// regroup takes devices and their queues off an uplink and puts others on it, between two bursts: no VM and no front-end hears of it.
func (c *Controller) regroup(u *uplink, gone, fresh []*device, queues []*queue) (err error) {
	begin := time.Now()
	if len(gone) > 0 { // an heir would go on to hold their places on their interfaces
		c.withdraw()
	}
	c.pulses.remove(u) // or it would find the workers that end
	defer func() {
		if err == nil {
			c.pulses.add(u)
		}
	}()
	leaves := func(q *queue) bool { return slices.Contains(gone, q.dev) }
	err = c.withoutVMs(u, func() error {
		for _, q := range u.queues {
			if leaves(q) {
				u.carryCounts(q)
			}
		}
		var errs []error
		for _, d := range gone {
			errs = append(errs, d.prog.Detach())
			c.watcher.Remove(d.facts.Index)
		}
		for _, q := range u.queues {
			if leaves(q) {
				errs = append(errs, q.close())
			}
		}
		first := u.queues[0]
		u.queues = append(slices.DeleteFunc(u.queues, leaves), queues...)
		u.devs = append(slices.DeleteFunc(u.devs, func(d *device) bool { return slices.Contains(gone, d) }), fresh...)
		if len(u.devs) == 0 {
			return errors.Join(append(errs, errors.New("none of the bond's members can be served"))...)
		}
		if u.queues[0] != first {
			errs = append(errs, u.queues[0].SetMulticast(u.mcast))
		}
		errs = append(errs, u.giveHost())
		if u.prog != u.devs[0].prog {
			u.prog = u.devs[0].prog
			errs = append(errs, u.prog.TakeLead())
		}
		for _, d := range gone {
			errs = append(errs, d.prog.Close())
			errs = append(errs, c.putBack(u.takeChanges(d))...)
		}
		for _, q := range queues {
			for _, a := range u.sorted() {
				errs = append(errs, q.Add(a.portConfig()))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	for idx := range u.steering { // a generic program may have come that is not needed, or is
		if err := u.setSteering(idx, true); err != nil {
			return err
		}
		break
	}
	for _, d := range gone {
		u.log.Warn("member has left the bond", "member", d.facts.Name, "took_ms", time.Since(begin).Milliseconds())
	}
	for _, d := range fresh {
		u.log.Info("member serves VMs", "member", d.facts.Name, "queues", d.facts.RxQueues, "took_ms", time.Since(begin).Milliseconds())
	}
	c.remember()
	return nil
}

// takeChanges takes the changes of the host that were made for a device out of the uplink's.
func (u *uplink) takeChanges(d *device) (out []state.Change) {
	of := func(ch state.Change) bool { return ch.Device.Index == d.facts.Index }
	for _, ch := range u.changes {
		if of(ch) {
			out = append(out, ch)
		}
	}
	u.changes = slices.DeleteFunc(slices.Clone(u.changes), of)
	return out
}

// describeBond is a bond as status shows it, nil for another interface. warnings are what is wrong with its members.
func (u *uplink) describeBond() (b *api.Bond, warnings []string) {
	if u.bond == nil {
		return nil, nil
	}
	b = &api.Bond{Mode: u.bond.Mode, Members: []api.BondMember{}}
	for _, m := range u.bond.Members {
		row := api.BondMember{Name: m.Name, Index: m.Index, State: api.MemberActive, Queues: []int{}, Why: u.unserved[m.Index].why}
		switch {
		case !m.Link:
			row.State = api.MemberDown
			warnings = append(warnings, fmt.Sprintf("%s takes the link of its member %s for down", u.name, m.Name))
		case !m.Active:
			row.State = api.MemberBackup
		}
		if row.Why != "" {
			warnings = append(warnings, fmt.Sprintf("what comes in by the member %s of %s for VMs is lost: %s", m.Name, u.name, row.Why))
		}
		if d := u.device(m.Index); d != nil {
			row.Driver, row.XDPMode = d.facts.Driver, api.XDPMode(d.prog.Mode())
		}
		for _, q := range u.queues {
			if q.dev.facts.Index == m.Index {
				row.Queues = append(row.Queues, q.id)
			}
		}
		b.Members = append(b.Members, row)
	}
	return b, warnings
}
