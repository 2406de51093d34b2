package controller

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/state"
)

// Attach puts one VM on an interface, which becomes an uplink with the first. It leaves nothing behind when it fails. A VM that is
// attached in the same way is left alone; of one that is attached in another way, what differs is changed; one that waits is tried.
func (c *Controller) Attach(req api.AttachRequest) (api.AttachResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retainFlows() // of a VM of this name whose detach a crash cut short
	if resp, known, err := c.attachKnown(req); known {
		return resp, err
	}
	return c.attach(req, false)
}

// attach does it. With again the VM was attached before, and may have come back behind another tap. The caller holds mu.
func (c *Controller) attach(req api.AttachRequest, again bool) (api.AttachResponse, error) {
	resp := newAttachResponse(&req)
	a, err := c.checkRequest(req)
	if err != nil {
		return resp, err
	}
	if err := checkTenant(a.kind, &req, a.policy, a.kept); err != nil {
		return resp, fmt.Errorf("attach: %w", err)
	}
	if err := c.checkTaken(req, a.addr); err != nil {
		return resp, err
	}
	if err := c.checkFurther(req.VM, req.Iface, a.addr.VLAN, a.kept); err != nil {
		return resp, fmt.Errorf("attach: %w", err)
	}
	if err := c.checkClaim(a); err != nil { // a tap is known only once it is found, below
		return resp, err
	}
	u := c.uplinks[req.Iface]
	var at *site
	if u == nil {
		if at, err = inspectUplink(&a.req, a.addr.VLAN); err != nil {
			return resp, err
		}
	} else {
		if err := u.agrees(&a.req); err != nil {
			return resp, err
		}
		at = u.site()
	}
	if a.req.XSKMap != "" {
		resp.Notes = append(resp.Notes, foreignNote(req.Iface))
	}
	facts := at.facts
	if err := checkOwn(a.addrs(), facts); err != nil {
		return resp, fmt.Errorf("attach: %w", err)
	}
	todo, warnings, err := planAllOffloads(at.devs, req.FixOffloads)
	if err != nil {
		return resp, err
	}
	changes, said, err := a.kind.plan(c, a, facts, again)
	if err == nil {
		err = c.checkClaim(a)
	}
	if err != nil {
		return resp, err
	}
	resp.Warnings = append(append(resp.Warnings, warnings...), said...)
	if u == nil {
		resp.Changes = append(resp.Changes, at.changes()...)
	}
	for _, mac := range append([]string{req.MAC}, a.kept.MACs...) {
		resp.Changes = append(resp.Changes, fmt.Sprintf("add %s to %s's unicast filter", mac, req.Iface))
	}
	for _, ch := range todo {
		resp.Changes = append(resp.Changes, hostchange.Text(ch))
	}
	if text := hostChange(u, a, facts); text != "" {
		resp.Changes = append(resp.Changes, text)
	}
	resp.Changes = append(resp.Changes, changes...)
	if req.DryRun {
		return resp, nil
	}
	if err := c.attachNow(u, at, a, todo, &resp); err != nil {
		return resp, err
	}
	c.log.Info("attached", "iface", req.Iface, "vm", req.VM, "mac", req.MAC, "vlan", req.VLAN, "feed", a.kind.feed(), "to", a.kind.to())
	for _, w := range resp.Warnings {
		c.log.Warn(w, "iface", req.Iface)
	}
	return resp, nil
}

// attachNow makes the changes, each undone again if a later one fails. The caller holds mu.
func (c *Controller) attachNow(u *uplink, at *site, a *attachment, todo []state.Change, resp *api.AttachResponse) (err error) {
	var done []state.Change
	fresh := u == nil
	c.touched = true
	defer func() {
		if err == nil {
			return
		}
		if fresh && u != nil {
			c.pulses.remove(u)
			_ = u.close()
			c.unwatchUplink(u)
			delete(c.uplinks, u.name)
		}
		_ = c.putBack(done)
		c.remember() // or what outlives this process would hold on to the sockets that were closed
	}()
	if done, err = c.applyChanges(at.facts.Name, todo); err != nil {
		return err
	}
	if c.flows == nil {
		if err := c.openFlows(); err != nil {
			return err
		}
	}
	if fresh {
		if u, err = openUplink(at, c.opt.Sizes, c.flows, c.tuning(), c.lookSoon, c.log); err != nil {
			return err
		}
		u.tag = c.nextTag("u")
		resp.Warnings = append(resp.Warnings, u.warnings...)
		if err := u.checkTags(); err != nil && u.foreign == nil {
			return err
		} else if err != nil { // whose program it is decides
			resp.Warnings = append(resp.Warnings, err.Error()+": until then a frame of any VLAN may be taken for an untagged one")
		}
		if err := c.watchUplink(u); err != nil {
			return err
		}
	}
	a.tag = c.nextTag("v")
	if err := u.addVM(a); err != nil {
		return err
	}
	if u.hostTrouble != "" && a.wantsHost() {
		resp.Warnings = append(resp.Warnings, u.hostTrouble)
	}
	if a.kind.watched() != 0 { // what happens there is noticed at once; a failure to listen costs a tick
		if _, err := c.watcher.Add(a.kind.to()); err != nil {
			a.log.Warn("watch", "err", err)
		}
	}
	before := u.changes
	noted := u.keepChanges(done)
	c.uplinks[u.name] = u
	if fresh {
		c.pulses.add(u)
	}
	if err := c.saveState(); err != nil {
		u.changes = before
		return errors.Join(err, c.dropVM(a))
	}
	if err := c.state.Forget(noted...); err != nil {
		c.log.Warn("noted twice on the undo list", "err", err)
	}
	return nil
}

// nextTag makes a tag that no uplink or VM has had. The caller holds mu.
func (c *Controller) nextTag(kind string) string {
	c.tags++
	return kind + strconv.Itoa(c.tags)
}

// watchUplink begins to follow an interface from how it is with its program on it.
func (c *Controller) watchUplink(u *uplink) error {
	facts, err := c.watcher.Add(u.name)
	if err != nil {
		return err
	}
	if facts.Index != u.facts.Index {
		return fmt.Errorf("interface %s: changed while it was attached: it was made anew", u.name)
	}
	for _, d := range u.devs {
		now := facts
		if u.bond != nil {
			if now, err = c.watcher.Add(d.facts.Name); err != nil {
				return err
			}
		}
		if why := d.want(u.room()).Broken(now); why != "" || now.Index != d.facts.Index {
			return fmt.Errorf("interface %s: changed while it was attached: %s", now.Name, cmp.Or(why, "it was made anew"))
		}
		d.facts = now
	}
	u.facts = facts
	return nil
}

// unwatchUplink ends that.
func (c *Controller) unwatchUplink(u *uplink) {
	c.watcher.Remove(u.facts.Index)
	for _, d := range u.devs {
		c.watcher.Remove(d.facts.Index)
	}
}

// addVM opens the way to the VM and steers its address to it. On failure nothing of it stays.
func (u *uplink) addVM(a *attachment) error {
	idx, gen, err := u.freeIndex()
	if err != nil {
		return err
	}
	a.idx, a.gen, a.up, a.log = idx, gen, u, u.log.With("vm", a.req.VM)
	for _, addr := range a.addrs() {
		if err := u.mcast.AddUnicast(addr.MAC[:]); err != nil {
			return errors.Join(fmt.Errorf("interface %s: unicast filter: %w", u.name, err), u.removeVM(a))
		}
	}
	if err := u.each(func(q *queue) error { return q.Add(a.portConfig()) }); err != nil {
		return errors.Join(err, u.removeVM(a))
	}
	if err := u.countFlows(a); err != nil {
		return errors.Join(err, u.removeVM(a))
	}
	if err := a.kind.open(a); err != nil {
		return errors.Join(err, u.removeVM(a))
	}
	u.vms[a.req.VM], u.byIdx[idx] = a, a
	u.syncHost()
	return nil
}

// countFlows has the VM's flows counted in its own map.
func (u *uplink) countFlows(a *attachment) (err error) {
	if u.foreign != nil {
		return nil
	}
	if a.flows, err = u.flows.VM(a.req.VM); err != nil {
		return err
	}
	return u.prog.SetFlows(a.id(), a.flows)
}

// removeVM takes a VM off: no more steering, held segments delivered, the way closed. Safe on a half-added VM.
func (u *uplink) removeVM(a *attachment) error {
	var errs []error
	for _, addr := range a.addrs() {
		if err := u.prog.DeletePort(keyOf(addr)); err != nil && !errors.Is(err, bpf.ErrNoPort) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, a.kind.close(a), u.prog.EndFlows(a.id(), a.flows), u.setSteering(a.idx, false))
	errs = append(errs, u.each(func(q *queue) error {
		q.shares.Forget(a.idx)
		return q.Remove(a.idx)
	}))
	for _, addr := range a.addrs() {
		errs = append(errs, u.mcast.DelUnicast(addr.MAC[:]))
	}
	if u.vms[a.req.VM] == a {
		delete(u.vms, a.req.VM)
		u.byIdx[a.idx] = nil
		u.syncHost()
	}
	return errors.Join(errs...)
}

// Detach takes one VM, or with VM empty every VM, off an interface. With the last one the interface is given back.
func (c *Controller) Detach(req api.DetachRequest) (api.DetachResponse, error) {
	resp := api.DetachResponse{Schema: api.Schema, Iface: req.Iface, VMs: []string{}, Restored: []string{}, Warnings: []string{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.uplinks[req.Iface]
	found := c.detachWaiting(req, &resp)
	if u == nil && !found {
		if len(c.waiting[req.Iface]) > 0 {
			return resp, fmt.Errorf("detach: interface %s: %w", req.Iface, c.unknownVM(req.VM))
		}
		return resp, fmt.Errorf("detach: %w", c.unknownIface(req.Iface))
	}
	var errs []error
	if u != nil {
		for _, a := range u.sorted() {
			if req.VM == "" || req.VM == a.req.VM {
				found = true
				resp.VMs = append(resp.VMs, a.req.VM)
				for _, addr := range a.addrs() {
					resp.Restored = append(resp.Restored, fmt.Sprintf("%s removed from %s's unicast filter", net.HardwareAddr(addr.MAC[:]), u.name))
				}
				errs = append(errs, c.dropVM(a))
			}
		}
		if !found {
			return resp, fmt.Errorf("detach: interface %s: %w", req.Iface, c.unknownVM(req.VM))
		}
		if len(u.vms) == 0 {
			restored, err := c.closeUplink(u)
			resp.Restored = append(resp.Restored, restored...)
			errs = append(errs, err)
		}
	}
	resp.Warnings = c.saveInForce()
	c.retainFlows()
	if len(c.uplinks) == 0 && len(c.waiting) == 0 && c.flows != nil {
		errs = append(errs, c.dropFlows())
		c.remember()
	}
	for _, vm := range resp.VMs {
		delete(c.retries, vm)
	}
	c.log.Info("detached", "iface", req.Iface, "vms", strings.Join(resp.VMs, ","))
	return resp, errors.Join(errs...)
}

// dropFlows removes the pinned flow maps after the last detach; the next attach makes new ones. The caller holds mu.
func (c *Controller) dropFlows() error {
	err := c.flows.Close()
	c.flows = nil
	if c.flowsPin != "" {
		if rerr := os.Remove(c.flowsPin); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		_ = os.Remove(c.opt.BPFFS) // ours when empty; it stays when the operator keeps other pins in it
		c.flowsPin = ""
	}
	unlockPins(c.pinsLock)
	c.pinsLock = nil
	if err != nil {
		return fmt.Errorf("flow maps: %w", err)
	}
	return nil
}
