package controller

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
)

// watch follows the links and looks at everything once a second, until ctx ends.
func (c *Controller) watch(ctx context.Context) {
	tick := time.NewTimer(healthEvery)
	defer tick.Stop()
	var looked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-c.watcher.Events():
			if c.linkChanged(e) { // who loads a rule set changes it a thousand times: one look for many
				tick.Reset(max(0, time.Until(looked.Add(newsPause))))
			}
		case <-c.trouble:
			c.mu.Lock()
			c.checkPorts()
			c.mu.Unlock()
		case <-tick.C:
			c.mu.Lock()
			c.checkPorts()
			c.wakeWaiting()
			c.saveAgain()
			looked = time.Now()
			tick.Reset(c.nextLook())
			c.mu.Unlock()
		}
	}
}

// nextLook is how long until the next look: sooner where a bridge forgets senders sooner. The caller holds mu.
func (c *Controller) nextLook() time.Duration {
	next := healthEvery
	for _, u := range c.uplinks {
		for _, v := range u.ports {
			if v.tap != nil && v.tap.bridge != nil && v.tap.bridge.Ageing > 0 {
				next = min(next, max(v.tap.bridge.Ageing/4, leastLook))
			}
		}
	}
	return next
}

// linkChanged follows what happened to an interface, and reports whether it is time to look at everything.
func (c *Controller) linkChanged(e netdev.Event) (look bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e.Kind {
	case netdev.RulesChanged:
		return true
	case netdev.LinksChanged:
		c.retries.news(time.Now())
		return len(c.waiting) > 0
	}
	u := c.byIndex(e.Index)
	if u == nil {
		c.tapChanged(e.Index)
		return false
	}
	switch e.Kind {
	case netdev.Down, netdev.CarrierOff:
		u.log.Warn("link is down")
	case netdev.Up, netdev.CarrierOn:
		u.log.Info("link is up")
	}
	c.checkUplink(u)
	return true // what is in a bridge with it, and the VMs that were taken off
}

// tapChanged looks at a VM's tap at once instead of at the next tick. The caller holds mu.
func (c *Controller) tapChanged(index int) {
	for _, u := range c.uplinks {
		for _, v := range u.ports {
			if v.tap == nil || v.tap.facts.Index != index {
				continue
			}
			if err := v.checkTap(c.rules.Read()); err != nil {
				c.sleepPort(v, err)
			}
			return
		}
	}
}

func (c *Controller) byIndex(index int) *uplink {
	for _, u := range c.uplinks {
		if u.facts.Index == index {
			return u
		}
	}
	return nil
}

// checkPorts looks at everything that is attached. The caller holds mu.
func (c *Controller) checkPorts() {
	for _, name := range slices.Sorted(maps.Keys(c.uplinks)) {
		if u := c.uplinks[name]; u != nil { // it may have been given back, or have another name by now
			c.checkUplink(u)
		}
	}
	rules, err := c.readRules()
	for _, u := range c.uplinks {
		for _, v := range u.sortedPorts() {
			if v.tap != nil {
				if err := v.checkTap(rules, err); err != nil {
					c.sleepPort(v, err)
					continue
				}
				v.refreshSenders()
			}
		}
		u.checkPartial()
	}
}

// readRules reads the rules of the host if a VM is on its own tap, whose frames they would see. The caller holds mu.
func (c *Controller) readRules() (*netdev.Rules, error) {
	for _, u := range c.uplinks {
		for _, v := range u.ports {
			if v.tap != nil {
				return c.rules.Read()
			}
		}
	}
	return nil, nil
}

// refreshSenders tells the bridge of the senders whose frames it does not see, as those frames would have: without it their
// entries age, and what the VM sends to them is flooded to every port.
func (v *vmPort) refreshSenders() {
	b := v.tap.bridge
	if b == nil {
		return
	}
	macs := v.senders()
	if len(macs) == 0 {
		return
	}
	if err := netdev.RefreshFDB(b.Port.Index, b.VID, macs); err != nil {
		v.log.Warn("bridge: forwarding entries", "err", err)
	}
}

// checkPartial warns of senders with partial checksums, each time a VM's frames of that kind have grown tenfold.
func (u *uplink) checkPartial() {
	s := report.Uplink{Name: u.name, Remedy: u.partialRemedy(), Queues: u.look()}
	for _, v := range u.sortedPorts() {
		vm := report.VM{Index: v.idx, Port: api.Port{VM: v.req.VM}}
		if n := s.PartialChecksums(&vm); n > 10*v.partial {
			v.partial = n
			v.log.Warn(s.PartialWarning(&vm, n))
		}
	}
}

// lookSoon is called by a worker that has trouble. It never waits.
func (c *Controller) lookSoon() {
	select {
	case c.trouble <- struct{}{}:
	default: // a look is due already
	}
}
