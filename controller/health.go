package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

// watch follows the links and looks at everything once a second, until ctx ends. serve answers on a control socket beside the first.
func (c *Controller) watch(ctx context.Context, serve func(*unixsock.Listener)) {
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
			c.guarded(c.checkAll)
		case <-tick.C:
			next := healthEvery
			c.guarded(func() {
				c.checkAll()
				c.wakeWaiting()
				c.saveAgain()
				c.rememberCounts()
				next = c.nextLook()
			})
			c.listenAgain(ctx, serve)
			looked = time.Now()
			tick.Reset(next)
		}
	}
}

// guarded runs fn with the lock held. A fault of ours in it costs this look, is logged with its place, and ends nothing: the
// workers and the VMs do not depend on it, and the next look begins anew.
func (c *Controller) guarded(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("internal fault: please report it", "fault", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
	}()
	fn()
}

// nextLook is how long until the next look: sooner where a bridge forgets senders sooner. The caller holds mu.
func (c *Controller) nextLook() time.Duration {
	next := healthEvery
	for _, u := range c.uplinks {
		for _, a := range u.vms {
			if d := a.kind.restless(); d > 0 {
				next = min(next, d)
			}
		}
	}
	return next
}

// linkChanged follows what happened to an interface, and reports whether it is time to look at everything.
func (c *Controller) linkChanged(e netdev.Event) (look bool) {
	c.guarded(func() { look = c.follow(e) })
	return look
}

// follow is linkChanged with the lock held.
func (c *Controller) follow(e netdev.Event) (look bool) {
	switch e.Kind {
	case netdev.RulesChanged:
		return true
	case netdev.LinksChanged:
		c.retries.news(time.Now())
		return c.followBonds() || len(c.waiting) > 0
	}
	u := c.byIndex(e.Index)
	if u == nil {
		c.vmChanged(e.Index)
		return false
	}
	of := ""
	if e.Index != u.facts.Index {
		of = e.Was.Name + ": "
	}
	switch e.Kind {
	case netdev.Down, netdev.CarrierOff:
		u.linkSays(slog.LevelWarn, of+"link is down")
	case netdev.Up, netdev.CarrierOn:
		u.linkSays(slog.LevelInfo, of+"link is up")
		if u.bond != nil && e.Index == u.facts.Index { // what was said while it was down, nobody heard
			u.announce = announceLooks
		}
	}
	c.checkUplink(u)
	return true // what is in a bridge with it, and the VMs that were taken off
}

// linkSays logs what the link does, as often as whoever has its other end may make it.
func (u *uplink) linkSays(level slog.Level, what string) {
	if left, ok := u.limit.Allow(what); ok {
		u.log.Log(context.Background(), level, what, "lines_left_out", left)
	}
}

// vmChanged looks at once, instead of at the next tick, at the VM that an interface belongs to. The caller holds mu.
func (c *Controller) vmChanged(index int) {
	for _, u := range c.uplinks {
		for _, a := range u.vms {
			if a.kind.watched() != index {
				continue
			}
			c.lookAt(func(l *look) { c.checkVM(a, l) })
			return
		}
	}
}

func (c *Controller) byIndex(index int) *uplink {
	for _, u := range c.uplinks {
		if u.facts.Index == index || u.device(index) != nil {
			return u
		}
	}
	return nil
}

// checkAll looks at everything that is attached. The caller holds mu.
func (c *Controller) checkAll() {
	for _, name := range slices.Sorted(maps.Keys(c.uplinks)) {
		if u := c.uplinks[name]; u != nil { // it may have been given back, or have another name by now
			c.checkUplink(u)
		}
	}
	c.lookAt(func(l *look) {
		for _, u := range c.uplinks {
			for _, a := range u.sorted() {
				c.checkVM(a, l)
			}
			if c.uplinks[u.name] != u { // its last VM was given up, and it is closed
				continue
			}
			u.checkPartial()
			u.checkHost(l)
			u.checkHangs(time.Now())
		}
	})
}

func (c *Controller) checkVM(a *attachment, l *look) {
	if err := a.kind.check(a, l); err != nil {
		l.doubt()
		c.sleepVM(a, err)
	}
}

// checkPartial warns of senders with partial checksums, each time a VM's frames of that kind have grown tenfold. Workers that
// have moved nothing since the last look are not woken.
func (u *uplink) checkPartial() {
	moved := false
	for _, q := range u.queues {
		now := q.Activity()
		moved = moved || now != q.seen
		q.seen = now
	}
	if !moved {
		return
	}
	s := report.Uplink{Name: u.name, Queues: u.look()}
	for _, a := range u.sorted() {
		vm := report.VM{Index: a.idx, Port: api.Port{VM: a.req.VM}, Before: a.before}
		a.partialPast(&s, &vm)
		if n := s.PartialChecksums(&vm); n > 10*a.partial {
			a.partial = n
			if s.Remedy == "" { // it asks the other end of a veth: only for those who need it
				s.Remedy = u.partialRemedy()
			}
			a.log.Warn(s.PartialWarning(&vm, n))
		}
	}
}

// LookAgain makes the controller look at everything at once, and try the VMs that wait.
func (c *Controller) LookAgain() {
	c.mu.Lock()
	c.retries.again(time.Now())
	c.mu.Unlock()
	c.lookSoon()
}

// lookSoon is called by a worker that has trouble. It never waits.
func (c *Controller) lookSoon() {
	select {
	case c.trouble <- struct{}{}:
	default: // a look is due already
	}
}
