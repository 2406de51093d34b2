package controller

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/state"
)

// openState takes the state directory. ErrHeld when another controller has it.
func openState(path string) (*state.Dir, error) {
	d, err := state.Open(path)
	if errors.Is(err, state.ErrLocked) {
		return nil, coded{err, ErrHeld}
	}
	return d, err
}

// savedVM is a VM as the state file keeps it.
func savedVM(req api.AttachRequest, p api.Policy, kept api.Addresses) state.VM {
	vm := state.VM{Name: req.VM, MAC: req.MAC, VLAN: req.VLAN, FixOffloads: req.FixOffloads, Policy: savedPolicy(p), MACs: kept.MACs, IPs: kept.IPs, XSKMap: req.XSKMap, Queues: req.Queues}
	if req.VhostUser == "" {
		vm.Tap = &state.Tap{Device: req.Tap, Domain: req.Domain, Trust: req.TrustTap, BypassFilters: req.Bypass}
	} else {
		vm.VhostUser = &state.VhostUser{Socket: req.VhostUser, Connect: req.Connect, Mode: req.SocketMode, Owner: req.SocketOwner, AllowSpoof: req.AllowSpoof, AnyMemory: req.AnyMemory, MTU: req.MTU, Isolate: p.Isolate}
	}
	return vm
}

func savedPolicy(p api.Policy) state.Policy {
	s := state.Policy{
		Coalesce: p.Coalesce, IPv4: p.IPv4, IPv6: p.IPv6, UDP: p.UDP, Profile: string(p.Profile), HoldNS: p.HoldNS,
		MaxBytes: p.MaxBytes, MaxSegments: p.MaxSegments, ExcludePorts: p.ExcludePorts, Isolate: p.Isolate, NoHost: !p.Host,
		RateTx: p.RateTx, BurstTx: p.BurstTx, RateRx: p.RateRx, BurstRx: p.BurstRx,
	}
	if p.HoldAdaptive {
		s.AdaptiveNS = p.HoldNS
		s.HoldNS = min(p.HoldNS, api.FixedHold.Nanoseconds())
	}
	return s
}

// policyAgain is a policy of the state file.
func policyAgain(p state.Policy) api.Policy {
	hold := p.HoldNS
	if p.AdaptiveNS != 0 {
		hold = p.AdaptiveNS
	}
	return api.Policy{
		Coalesce: p.Coalesce, IPv4: p.IPv4, IPv6: p.IPv6, UDP: p.UDP, Profile: api.Profile(p.Profile), HoldNS: hold, HoldAdaptive: p.AdaptiveNS != 0,
		MaxBytes: p.MaxBytes, MaxSegments: p.MaxSegments, ExcludePorts: p.ExcludePorts, Isolate: p.Isolate, Host: !p.NoHost,
		RateTx: p.RateTx, BurstTx: p.BurstTx, RateRx: p.RateRx, BurstRx: p.BurstRx,
	}
}

// attachAgain is the request that attaches a VM of the state file. Its policy is given in full: defaults may have changed since.
func attachAgain(iface string, vm state.VM) api.AttachRequest {
	p := policyAgain(vm.Policy)
	if vm.VhostUser != nil {
		p.Isolate = p.Isolate || vm.VhostUser.Isolate
	}
	kept := api.Addresses{}.With(&vm.MACs, &vm.IPs)
	req := api.AttachRequest{Iface: iface, VM: vm.Name, MAC: vm.MAC, VLAN: vm.VLAN, FixOffloads: vm.FixOffloads, Policy: p.Patch(), MACs: &kept.MACs, IPs: &kept.IPs, XSKMap: vm.XSKMap, Queues: vm.Queues}
	if t := vm.Tap; t != nil {
		req.Tap, req.Domain, req.TrustTap, req.Bypass = t.Device, t.Domain, t.Trust, t.BypassFilters
	}
	if s := vm.VhostUser; s != nil {
		req.VhostUser, req.Connect, req.SocketMode, req.SocketOwner, req.AllowSpoof, req.AnyMemory, req.MTU = s.Socket, s.Connect, s.Mode, s.Owner, s.AllowSpoof, s.AnyMemory, s.MTU
	}
	return req
}

// Config is what the controller was told of every VM, attached or waiting.
func (c *Controller) Config() api.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := api.Config{Schema: api.Schema, VMs: []api.AttachRequest{}, Waiting: []string{}, DefaultPolicy: c.newPolicy()}
	for _, i := range c.snapshotState().Interfaces {
		for _, vm := range i.VMs {
			out.VMs = append(out.VMs, attachAgain(i.Name, vm))
			if _, err := c.findVM(vm.Name); err != nil {
				out.Waiting = append(out.Waiting, vm.Name)
			}
		}
	}
	return out
}

// snapshotState is what the state file should hold now: the attached VMs, and those that wait or are still to be restored. A
// VM that is in both lists is being attached at this moment. The caller holds mu.
func (c *Controller) snapshotState() state.State {
	byIface := map[string][]state.VM{}
	attached := map[string]bool{}
	for _, u := range c.uplinks {
		for _, v := range u.sorted() {
			byIface[u.name] = append(byIface[u.name], v.saved())
			attached[v.req.VM] = true
		}
	}
	for iface, list := range c.waiting {
		for _, w := range list {
			if !attached[w.vm.Name] {
				byIface[iface] = append(byIface[iface], w.vm)
			}
		}
	}
	var s state.State
	if c.defaults != nil {
		p := savedPolicy(*c.defaults)
		s.DefaultPolicy = &p
	}
	for _, iface := range slices.Sorted(maps.Keys(byIface)) {
		s.Interfaces = append(s.Interfaces, state.Interface{Name: iface, VMs: byIface[iface]})
	}
	return s
}

// saveState writes the state file. The caller holds mu.
func (c *Controller) saveState() error {
	c.unsaved = notSaved(c.state.Save(c.snapshotState()))
	c.remember()
	return c.unsaved
}

// saveInForce writes the state file after something was carried out that cannot be taken back. What could not be written is
// told in words; status shows it and saveAgain tries it again. The caller holds mu.
func (c *Controller) saveInForce() (warnings []string) {
	err := c.saveState()
	if err == nil {
		return []string{}
	}
	c.log.Error("in force, not saved", "err", err)
	return []string{notSavedText(err)}
}

func notSavedText(err error) string {
	return fmt.Sprintf("in force, but %v: it is tried again each second; a crash before that would bring back what was there before", err)
}

// saveAgain writes what could not be written before. The caller holds mu.
func (c *Controller) saveAgain() {
	if c.unsaved != nil && c.saveState() == nil {
		c.log.Info("state saved")
	}
	_ = c.state.Flush() // it stays to be written; saveState tells of a full disk
}

// savePolicy writes the state file with another policy and other addresses of a VM, before they are put in force. The caller holds mu.
func (c *Controller) savePolicy(v *attachment, p api.Policy, kept api.Addresses) error {
	s := c.snapshotState()
	for _, i := range s.Interfaces {
		for k := range i.VMs {
			if i.VMs[k].Name == v.req.VM {
				i.VMs[k] = savedVM(v.req, p, kept)
			}
		}
	}
	return notSaved(c.state.Save(s))
}

// notSaved gives an error of the state directory its code.
func notSaved(err error) error {
	if errors.Is(err, state.ErrNotSaved) {
		return coded{err, ErrNotSaved}
	}
	return err
}

// stateWarnings is what an operator must know of the state directory. The caller holds mu.
func (c *Controller) stateWarnings() (out []string) {
	for _, err := range c.state.Problems() {
		out = append(out, err.Error())
	}
	if c.unsaved != nil {
		out = append(out, notSavedText(c.unsaved))
	}
	return out
}

// record puts changes of the host on the undo list, and gives them their IDs there.
func (c *Controller) record(todo []state.Change) error { return notSaved(c.state.Record(todo)) }

// putBack undoes changes, the newest first, and takes them off the undo list. What could not be undone stays there for the next
// run, and is returned.
func (c *Controller) putBack(changes []state.Change) (errs []error) {
	var done []uint64
	for i := len(changes) - 1; i >= 0; i-- {
		if _, err := hostchange.Undo(changes[i]); err != nil {
			errs = append(errs, err)
		} else {
			done = append(done, changes[i].ID)
		}
	}
	if err := c.state.Forget(done...); err != nil {
		c.log.Warn("undone, but still on the undo list", "err", err) // written again by saveAgain
	}
	return errs
}
