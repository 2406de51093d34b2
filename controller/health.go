package controller

import (
	"context"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
)

// watch follows the links and looks at the ports once a second, until ctx ends.
func (c *Controller) watch(ctx context.Context) {
	tick := time.NewTimer(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-c.watcher.Events():
			c.linkChanged(e)
		case <-c.trouble:
			c.mu.Lock()
			c.checkPorts()
			c.mu.Unlock()
		case <-tick.C:
			c.mu.Lock()
			c.checkPorts()
			c.wakeWaiting()
			c.saveAgain()
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

// linkChanged follows what happened to an uplink. A new number of RX queues or a new MTU needs sockets of another shape,
// so the interface is given back and attached again; its VMs see their link go down and come back.
func (c *Controller) linkChanged(e netdev.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.byIndex(e.Index)
	if u == nil {
		c.tapChanged(e.Index)
		return
	}
	switch e.Kind {
	case netdev.Gone:
		u.log.Error("interface is gone: its VMs wait for it")
	case netdev.QueuesChanged:
		u.log.Warn("number of RX queues changed: attaching again", "was", e.Was.RxQueues, "now", e.Now.RxQueues)
	case netdev.MTUChanged:
		u.log.Warn("MTU changed: attaching again", "was", e.Was.MTU, "now", e.Now.MTU)
	case netdev.Down, netdev.CarrierOff:
		u.log.Warn("link is down")
		return
	case netdev.Up, netdev.CarrierOn:
		u.log.Info("link is up")
		return
	default:
		return
	}
	c.sleepUplink(u)
	c.wakeWaiting()
}

// tapChanged looks at a VM's tap at once instead of at the next tick. The caller holds mu.
func (c *Controller) tapChanged(index int) {
	for _, u := range c.uplinks {
		for _, v := range u.ports {
			if v.tap == nil || v.tap.facts.Index != index {
				continue
			}
			if err := v.checkTap(); err != nil {
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

// checkPorts logs what an operator must know of the ports. The caller holds mu.
func (c *Controller) checkPorts() {
	for _, u := range c.uplinks {
		for _, v := range u.sortedPorts() {
			if v.tap != nil {
				if err := v.checkTap(); err != nil {
					c.sleepPort(v, err)
					continue
				}
				v.refreshSenders()
			}
		}
		u.checkPartial()
	}
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
