package controller

import (
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
)

// checkUplink looks whether all that was true of an interface when it was attached still is. What can be followed is (its name,
// its address, offloads that are switched off again); otherwise the interface is given back and its VMs wait for the next
// try, with the reason. The caller holds mu.
func (c *Controller) checkUplink(u *uplink) {
	for _, q := range u.queues {
		if err := q.Fault(); err != nil { // a fault of ours: the worker is made anew with its interface, the others go on
			c.sleepUplink(u, err.Error())
			return
		}
	}
	now, err := c.host.InspectIndex(u.facts.Index)
	switch {
	case errors.Is(err, netdev.ErrNoDevice):
		c.sleepUplink(u, "the interface is gone")
		return
	case err != nil: // about asking, not about the interface
		u.log.Warn("interface: look", "err", err)
		return
	}
	if now.Name != u.name {
		c.followNames()
		if c.uplinks[u.name] != u { // given back meanwhile
			return
		}
	}
	if u.bond != nil && !c.followBond(u) {
		return
	}
	looks := []*netdev.Facts{now}
	if u.bond != nil {
		if looks = c.inspectDevices(u); looks == nil {
			return // the next event tells
		}
	}
	if why := c.unfit(u, now, looks); why != "" {
		c.sleepUplink(u, why)
		return
	}
	for i, d := range u.devs {
		if len(netdev.SwitchedOn(d.facts, looks[i])) > 0 { // and have been switched off again
			if looks[i], err = c.host.InspectIndex(d.facts.Index); err != nil {
				return
			}
		}
		u.renameDevice(d, looks[i].Name)
		d.facts = looks[i]
	}
	was := u.facts.MAC
	if u.facts = now; u.bond == nil {
		u.facts = looks[0]
	}
	u.followAddress(was)
	if err := u.each(func(q *queue) error { return q.SetDirect(u.facts.TSO, u.facts.USO) }); err != nil {
		u.log.Warn("segmentation by the interface: follow", "tso", u.facts.TSO, "uso", u.facts.USO, "err", err)
	}
	c.followForeign(u)
	for _, v := range u.sorted() {
		if v.clashes(now) {
			c.sleepVM(v, fmt.Errorf("MAC %s is %s's own now", now.MAC, u.name))
		}
	}
}

// inspectDevices looks at all of an uplink's devices, nil when that cannot be.
func (c *Controller) inspectDevices(u *uplink) (out []*netdev.Facts) {
	for _, d := range u.devs {
		f, err := c.host.InspectIndex(d.facts.Index)
		if err != nil {
			return nil
		}
		out = append(out, f)
	}
	return out
}

// unfit says why an interface cannot stay attached as it is, "" when it can. devices are the looks at its devices.
func (c *Controller) unfit(u *uplink, now *netdev.Facts, devices []*netdev.Facts) string {
	for i, d := range u.devs {
		if why := d.want(u.room()).Broken(devices[i]); why != "" {
			return u.ofMember(d.facts.Name, errors.New(why)).Error()
		}
	}
	if now.MTU != u.facts.MTU {
		if err := u.setMTU(now.MTU); err != nil {
			return err.Error()
		}
	}
	if now.Master != u.facts.Master {
		if err := netdev.CheckUplink(now.Name, 0); err != nil {
			return err.Error()
		}
	}
	for i, d := range u.devs {
		for _, feature := range netdev.SwitchedOn(d.facts, devices[i]) {
			if err := c.switchOff(u, devices[i].Name, feature); err != nil {
				return err.Error()
			}
		}
	}
	if err := u.checkTags(); err != nil && u.foreign == nil {
		return err.Error()
	}
	return ""
}

// setMTU follows an MTU that the open sockets still hold: what guests send may be as long, and who connects next is told.
func (u *uplink) setMTU(mtu int) error {
	u.log.Info("the MTU changed, and what is open holds it", "was", u.facts.MTU, "now", mtu)
	for _, a := range u.vms {
		a.kind.uplinkMTU(mtu)
	}
	return u.each(func(q *queue) error { return q.SetMTU(mtu) })
}

// switchOff switches an offload off that somebody switched on under us.
func (c *Controller) switchOff(u *uplink, device, feature string) error {
	u.log.Warn("offload was switched on while VMs are attached: switching it off again", "device", device, "offload", feature)
	done, err := c.applyChanges(u.name, []state.Change{hostchange.SwitchOff(device, "", feature, "it was switched on while VMs were attached")})
	if err != nil {
		return err
	}
	return c.state.Forget(u.keepChanges(done)...)
}

// followNames takes the names that the interfaces have now: they are known by their indexes. The caller holds mu.
func (c *Controller) followNames() {
	uplinks, moved := map[string]*uplink{}, map[string]string{}
	for _, u := range c.uplinks {
		now, err := c.host.InspectIndex(u.facts.Index)
		if err != nil {
			continue // gone or not to be asked: it keeps its name unless that is another's now
		}
		if now.Name != u.name {
			u.log.Warn("interface has another name", "now", now.Name)
			moved[u.name], u.log = now.Name, c.log.With("iface", now.Name)
		}
		u.rename(now.Name)
		uplinks[now.Name] = u
	}
	for name, u := range c.uplinks {
		if u.name == name && uplinks[name] == nil {
			uplinks[name] = u
		} else if uplinks[u.name] != u {
			c.sleepUplink(u, "the interface is gone")
		}
	}
	waiting := map[string][]*waitingVM{}
	for name, list := range c.waiting {
		if now, ok := moved[name]; ok { // they wait for that interface, not for the name
			name = now
		}
		waiting[name] = append(waiting[name], list...)
	}
	c.uplinks, c.waiting = uplinks, waiting
	c.saveInForce()
}

// rename takes another name of the interface over into all that speaks of it.
func (u *uplink) rename(name string) {
	if u.bond == nil {
		u.renameChanges(u.name, name)
	}
	u.name = name
	for _, v := range u.vms {
		v.req.Iface = name
	}
}

// renameDevice is rename for a bond's member.
func (u *uplink) renameDevice(d *device, name string) {
	if u.bond != nil && d.facts.Name != name {
		u.renameChanges(d.facts.Name, name)
	}
}

func (u *uplink) renameChanges(was, name string) {
	for i := range u.changes {
		if u.changes[i].Via == was {
			u.changes[i].Via = name
		} else if u.changes[i].Link == was {
			u.changes[i].Link = name
		}
	}
}
