package controller

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/rscctl/rscctl/controller/api"
)

// attachKnown is attach for a VM whose name is known: attached as it is to be, in another way, or waiting. It is the same VM when its
// address and its interface are the same; otherwise the name is taken. known is false for a name that is new. The caller holds mu.
func (c *Controller) attachKnown(req api.AttachRequest) (resp api.AttachResponse, known bool, err error) {
	if a, err := c.findVM(req.VM); err == nil {
		resp, err := c.reattach(a, req)
		return resp, true, err
	}
	for iface, list := range c.waiting {
		for _, w := range list {
			if w.vm.Name == req.VM {
				resp, err := c.reattachWaiting(iface, w, req)
				return resp, true, err
			}
		}
	}
	return resp, false, nil
}

// reattach changes of an attached VM what a request has otherwise: the policy while it runs, all else by attaching it anew. What the
// request does not say of the policy stays as it is.
func (c *Controller) reattach(a *attachment, req api.AttachRequest) (api.AttachResponse, error) {
	resp := newAttachResponse(&req)
	was := attachAgain(a.up.name, a.saved())
	current, _, _ := a.effective()
	policy, kept, err := c.checkAgain(&was, &req, current)
	if err != nil {
		return resp, err
	}
	if req.Tap != "" && a.req.VhostUser == "" && req.Tap != a.req.Tap {
		resp.Warnings = append(resp.Warnings, fmt.Sprintf("VM %s is behind tap %s: it is found there by its address", req.VM, a.req.Tap))
	}
	anew := was.Differences(&req)
	resp.Changes = append(resp.Changes, anew...)
	resp.Changes = append(resp.Changes, current.Differences(policy)...)
	resp.Changes = append(resp.Changes, a.kept.Differences(kept)...)
	switch {
	case len(resp.Changes) == 0:
		resp.Deed = api.DeedNone
		return resp, nil
	case len(anew) == 0 && !req.DryRun:
		resp.Deed = api.DeedChanged
		_, err := c.putPolicy(a, policy, kept)
		return resp, err
	case req.DryRun:
		resp.Deed = api.DeedChanged
		if len(anew) > 0 {
			if err := c.tryNew(a, req); err != nil {
				return resp, fmt.Errorf("%w; VM %s is unchanged", err, req.VM)
			}
		}
		return resp, nil
	}
	req.Policy, req.MACs, req.IPs = policy.Patch(), &kept.MACs, &kept.IPs
	return c.changeTo(a, req, resp)
}

// changeTo takes an attached VM off and attaches it in its new form, or in the old one when that fails, or has it wait when that fails
// too. The state file names the VM all the time: a crash in between brings it back as it was. The caller holds mu.
func (c *Controller) changeTo(a *attachment, req api.AttachRequest, resp api.AttachResponse) (api.AttachResponse, error) {
	// What is known beforehand is said beforehand: an attempt takes the VM off.
	err := c.saveState()
	if err == nil {
		err = c.tryNew(a, req)
	}
	if err != nil {
		return resp, fmt.Errorf("%w; VM %s is unchanged", err, req.VM)
	}
	up, was := a.up, a.saved()
	c.wait(up.name, was, "it is being changed")
	w := c.waiting[up.name][len(c.waiting[up.name])-1]
	w.trying = true
	if err := c.dropVM(a); err != nil {
		a.log.Warn("VM: take off to change it", "err", err)
	}
	done, err := c.attach(req, false)
	if err != nil {
		if again := c.attachAgain(up.name, was); again != nil {
			w.trying, w.cause = false, again.Error()
			if len(up.vms) == 0 && c.uplinks[up.name] == up {
				_, cerr := c.closeUplink(up)
				again = errors.Join(again, cerr)
			}
			c.saveInForce()
			return resp, fmt.Errorf("%w; it could not be attached as it was either, and waits: %w", err, again)
		}
		err = fmt.Errorf("%w; VM %s is attached as it was", err, req.VM)
	}
	c.dropWaiting(up.name, func(other *waitingVM) bool { return other == w })
	c.saveInForce()
	resp.Warnings = append(resp.Warnings, done.Warnings...)
	resp.Deed = api.DeedChanged
	return resp, err
}

// tryNew looks whether an attached VM could be attached as a request has it, where that can be told while it is attached: not for a socket
// or a tap that it has itself.
func (c *Controller) tryNew(a *attachment, req api.AttachRequest) error {
	next, err := c.checkRequest(req)
	if err == nil {
		err = a.up.agrees(&next.req)
	}
	if err != nil || next.kind.claim() == a.kind.claim() {
		return err
	}
	if err := c.checkClaim(next); err != nil {
		return err
	}
	_, _, err = next.kind.plan(c, next, a.up.facts, false)
	return err
}

// reattachWaiting tries a VM that waits, as a request describes it. When that fails it waits on as it was.
func (c *Controller) reattachWaiting(iface string, w *waitingVM, req api.AttachRequest) (api.AttachResponse, error) {
	resp := newAttachResponse(&req)
	was := attachAgain(iface, w.vm)
	policy, kept, err := c.checkAgain(&was, &req, was.Policy.Over(api.BuiltinPolicy()))
	if err != nil {
		return resp, err
	}
	req.Policy, req.MACs, req.IPs = policy.Patch(), &kept.MACs, &kept.IPs
	w.trying = true
	resp, err = c.attach(req, false)
	w.trying = false
	if err != nil {
		return resp, fmt.Errorf("%w; VM %s waits on as it was", err, req.VM)
	}
	if !req.DryRun {
		delete(c.retries, req.VM)
		c.dropWaiting(iface, func(other *waitingVM) bool { return other == w })
		resp.Warnings = append(resp.Warnings, c.saveInForce()...)
	}
	return resp, nil
}

// checkAgain checks a request for a VM that is known as was, and returns what it asks for on top of the current policy and addresses.
func (c *Controller) checkAgain(was, req *api.AttachRequest, current api.Policy) (policy api.Policy, kept api.Addresses, err error) {
	a, err := c.checkRequest(*req)
	if err != nil {
		return policy, kept, err
	}
	if mac, err := net.ParseMAC(was.MAC); err != nil || was.Iface != req.Iface || !bytes.Equal(mac, a.addr.MAC[:]) {
		return policy, kept, fmt.Errorf("attach: VM %s: %w by the VM with MAC %s on %s: 'rscctl detach %s --vm %s' first, or choose another name",
			req.VM, ErrTaken, was.MAC, was.Iface, was.Iface, api.ShellWord(req.VM))
	}
	if policy, err = applyPatch(current, a.req.Policy); err != nil {
		return policy, kept, fmt.Errorf("attach: %w", err)
	}
	if kept, err = (api.Addresses{}).With(was.MACs, was.IPs).With(req.MACs, req.IPs).Canonical(req.MAC); err != nil {
		return policy, kept, fmt.Errorf("attach: %w: %w", ErrUsage, err)
	}
	if err = checkTenant(a.kind, req, policy, kept); err != nil {
		return policy, kept, fmt.Errorf("attach: %w", err)
	}
	if err = c.checkFurther(req.VM, req.Iface, a.addr.VLAN, kept); err != nil {
		return policy, kept, fmt.Errorf("attach: %w", err)
	}
	return policy, kept, nil
}

func newAttachResponse(req *api.AttachRequest) api.AttachResponse {
	return api.AttachResponse{Schema: api.Schema, Iface: req.Iface, VM: req.VM, DryRun: req.DryRun, Deed: api.DeedAttached, Changes: []string{}, Warnings: []string{}}
}
