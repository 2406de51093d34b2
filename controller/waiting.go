package controller

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
)

// waitingVM is a VM of the state that is not attached now: it is still to be restored, its interface or its tap is gone, or it
// could not be attached.
type waitingVM struct {
	vm     state.VM
	since  time.Time
	cause  string
	trying bool // it is being attached at this moment, so its names are free for that
}

// restore puts back what a crashed controller left changed, then attaches what the state names. The host comes first: it is put
// back also when the list of VMs cannot be read. An interface that is gone does not stop the others: its VMs wait, are shown by
// status, and can be detached.
func (c *Controller) restore() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, err := range c.state.Problems() {
		c.log.Warn("restore: undo list", "err", err)
	}
	for _, err := range c.putBack(c.state.Changes()) {
		c.log.Warn("restore: not put back, tried again by the next run", "err", err)
	}
	saved, err := c.state.Load()
	if err != nil {
		return err
	}
	c.restored = true
	c.restoreDefaults(saved.DefaultPolicy)
	// All wait before the first is attached: each attach writes the state file, and a crash must not lose those still to come.
	for _, i := range saved.Interfaces {
		for _, vm := range i.VMs {
			c.wait(i.Name, vm, "still to be restored")
			c.sweep(&vm)
		}
	}
	for _, i := range saved.Interfaces {
		c.wake(i.Name, c.attachAgain)
	}
	c.saveInForce() // in today's form, whatever form was read
	return nil
}

// sweep takes off the host what a controller that died left there for a VM.
func (c *Controller) sweep(vm *state.VM) {
	for _, k := range c.kinds {
		if k.sweep == nil {
			continue
		}
		if err := k.sweep(vm); err != nil {
			c.log.Warn("restore: left behind", "vm", vm.Name, "err", err)
		}
	}
}

// wait puts a VM on the list. The caller holds mu.
func (c *Controller) wait(iface string, vm state.VM, cause string) {
	c.waiting[iface] = append(c.waiting[iface], &waitingVM{vm: vm, since: time.Now(), cause: cause})
}

// waits tells whether a VM is on the list. The caller holds mu.
func (c *Controller) waits(name string) bool {
	for _, list := range c.waiting {
		if slices.ContainsFunc(list, func(w *waitingVM) bool { return w.vm.Name == name }) {
			return true
		}
	}
	return false
}

// attachAgain attaches a VM of the list. The caller holds mu.
func (c *Controller) attachAgain(iface string, vm state.VM) error {
	_, err := c.attach(attachAgain(iface, vm), true)
	return err
}

// wake attaches the VMs that wait for an interface and whose time has come, one after the other. Each leaves the list only when it
// is attached, so that every state file written in between holds it in one place or the other. The caller holds mu.
func (c *Controller) wake(iface string, attach func(string, state.VM) error) {
	for _, w := range slices.Clone(c.waiting[iface]) {
		vm := w.vm.Name
		if !c.retries.ready(vm, time.Now()) {
			continue
		}
		w.trying, c.touched = true, false
		err := attach(iface, w.vm)
		w.trying = false
		if err != nil {
			c.stillWaits(iface, w, err)
			c.retries.failed(vm, !c.touched, time.Now())
			continue
		}
		c.retries.succeeded(vm, time.Now())
		c.dropWaiting(iface, func(other *waitingVM) bool { return other == w })
	}
}

// stillWaits notes why a VM cannot be attached, and logs a cause that is a new one. The caller holds mu.
func (c *Controller) stillWaits(iface string, w *waitingVM, err error) {
	if w.cause != err.Error() {
		w.cause = err.Error()
		c.log.Warn("not attached again", "iface", iface, "vm", w.vm.Name, "err", err)
	}
}

// wakeWaiting attaches the VMs whose interface is back. The caller holds mu.
func (c *Controller) wakeWaiting() {
	for _, iface := range slices.Sorted(maps.Keys(c.waiting)) {
		if _, err := netdev.Inspect(iface); err != nil {
			for _, w := range c.waiting[iface] {
				c.stillWaits(iface, w, err)
			}
			continue
		}
		c.wake(iface, c.attachAgain)
	}
}

// dropWaiting takes VMs off the list. The caller holds mu.
func (c *Controller) dropWaiting(iface string, drop func(*waitingVM) bool) {
	if c.waiting[iface] = slices.DeleteFunc(c.waiting[iface], drop); len(c.waiting[iface]) == 0 {
		delete(c.waiting, iface)
	}
}

// waitingList is the list as status shows it. The caller holds mu.
func (c *Controller) waitingList(only string) []api.Waiting {
	out := []api.Waiting{}
	for _, iface := range slices.Sorted(maps.Keys(c.waiting)) {
		if only != "" && only != iface {
			continue
		}
		list := slices.SortedFunc(slices.Values(c.waiting[iface]), func(a, b *waitingVM) int { return cmp.Compare(a.vm.Name, b.vm.Name) })
		for _, w := range list {
			out = append(out, api.Waiting{VM: w.vm.Name, Iface: iface, MAC: w.vm.MAC, VLAN: w.vm.VLAN, Since: w.since, Cause: w.cause, NextTry: c.retries.next(w.vm.Name, time.Now())})
		}
	}
	return out
}

// detachWaiting detaches one VM, or with VM empty every VM, that waits for an interface. The caller holds mu.
func (c *Controller) detachWaiting(req api.DetachRequest, resp *api.DetachResponse) bool {
	c.dropWaiting(req.Iface, func(w *waitingVM) bool {
		if req.VM != "" && req.VM != w.vm.Name {
			return false
		}
		resp.VMs = append(resp.VMs, w.vm.Name)
		return true
	})
	return len(resp.VMs) > 0
}

// sleepUplink gives an interface back and keeps its VMs for later. The caller holds mu.
func (c *Controller) sleepUplink(u *uplink, why string) {
	u.log.Error("interface given back: its VMs wait", "reason", why)
	for _, v := range u.sorted() {
		c.wait(u.name, v.saved(), why)
		c.retries.asleep(v.req.VM, true, time.Now())
	}
	if _, err := c.closeUplink(u); err != nil {
		u.log.Warn("interface: give back", "err", err)
	}
	c.saveInForce()
}

// sleepVM takes one VM off until what it needs is back; the last one takes the interface with it. The caller holds mu.
func (c *Controller) sleepVM(v *attachment, why error) {
	u := v.up
	v.log.Error("VM given up until its tap is back", "err", why)
	c.wait(u.name, v.saved(), why.Error())
	c.retries.asleep(v.req.VM, false, time.Now())
	err := c.dropVM(v)
	if len(u.vms) == 0 {
		_, cerr := c.closeUplink(u)
		err = errors.Join(err, cerr)
	}
	if err != nil {
		v.log.Warn("VM: give up", "err", err)
	}
	c.saveInForce()
}
