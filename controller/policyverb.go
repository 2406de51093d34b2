package controller

import (
	"fmt"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/controller/state"
)

// findVM looks a VM up on every uplink. The caller holds mu.
func (c *Controller) findVM(name string) (*attachment, error) {
	for _, u := range c.uplinks {
		if v := u.vms[name]; v != nil {
			return v, nil
		}
	}
	if name == "" {
		return nil, fmt.Errorf("VM: %w: name one", ErrUsage)
	}
	return nil, c.unknownVM(name)
}

// newPolicy is what a VM gets when attach says nothing. The caller holds mu.
func (c *Controller) newPolicy() api.Policy {
	if c.defaults != nil {
		return *c.defaults
	}
	return api.BuiltinPolicy()
}

// restoreDefaults takes the default policy over from the state file. The caller holds mu.
func (c *Controller) restoreDefaults(saved *state.Policy) {
	if saved == nil {
		return
	}
	p, err := applyPatch(api.BuiltinPolicy(), policyAgain(*saved).Patch())
	if err != nil {
		c.log.Warn("restore: default policy: it is the product's again", "err", err)
		return
	}
	c.defaults = &p
}

// setDefaults changes the policy of VMs that are attached from now on. Those that are attached keep theirs. The caller holds mu.
func (c *Controller) setDefaults(req api.PolicyRequest) (api.PolicyResponse, error) {
	base := c.newPolicy()
	if req.Reset {
		base = api.BuiltinPolicy()
	}
	p, err := applyPatch(base, req.Patch)
	if err != nil {
		return api.PolicyResponse{}, err
	}
	was := c.defaults
	c.defaults = &p
	if err := c.saveState(); err != nil {
		c.defaults = was
		return api.PolicyResponse{}, fmt.Errorf("policy: default: unchanged: %w", err)
	}
	return defaultsResponse(p), nil
}

func defaultsResponse(p api.Policy) api.PolicyResponse {
	return api.PolicyResponse{Schema: api.Schema, Default: true, Policy: p, Effective: p.Profile}
}

// DefaultPolicy returns the policy that a VM gets when attach says nothing.
func (c *Controller) DefaultPolicy() api.PolicyResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	return defaultsResponse(c.newPolicy())
}

// GetPolicy returns the policy of one VM and what of it is in force.
func (c *Controller) GetPolicy(vm string) (api.PolicyResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.findVM(vm)
	if err != nil {
		return api.PolicyResponse{}, fmt.Errorf("policy: %w", err)
	}
	return v.policyResponse(), nil
}

// SetPolicy changes or resets the policy of one VM, live, or that of VMs to come. When it returns, what was held under the old one is delivered.
func (c *Controller) SetPolicy(req api.PolicyRequest) (api.PolicyResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.Default {
		if req.IPs != nil || req.MACs != nil {
			return api.PolicyResponse{}, fmt.Errorf("policy: addresses: %w: they are one VM's, and no default: name the VM", ErrUsage)
		}
		if req.VM != "" {
			return api.PolicyResponse{}, fmt.Errorf("policy: VM %s and the default policy: %w: name one of them", req.VM, ErrUsage)
		}
		return c.setDefaults(req)
	}
	v, err := c.findVM(req.VM)
	if err != nil {
		return api.PolicyResponse{}, fmt.Errorf("policy: %w", err)
	}
	base, _, _ := v.effective()
	if req.Reset {
		base = c.newPolicy()
	}
	policy, err := applyPatch(base, req.Patch)
	if err != nil {
		return api.PolicyResponse{}, err
	}
	kept, err := v.kept.With(req.MACs, req.IPs).Canonical(v.req.MAC)
	if err != nil {
		return api.PolicyResponse{}, fmt.Errorf("policy: %w: %w", ErrUsage, err)
	}
	if err := checkTenant(v.kind, &v.req, policy, kept); err != nil {
		return api.PolicyResponse{}, fmt.Errorf("policy: %w", err)
	}
	if err := c.checkFurther(v.req.VM, v.up.name, v.addr.VLAN, kept); err != nil {
		return api.PolicyResponse{}, fmt.Errorf("policy: %w", err)
	}
	next := attachment{addr: v.addr, kept: kept}
	if fresh := without(next.addrs(), v.addrs()); len(fresh) > 0 {
		if err := checkOwn(fresh, v.up.facts); err != nil {
			return api.PolicyResponse{}, fmt.Errorf("policy: %w", err)
		}
	}
	return c.putPolicy(v, policy, kept)
}

// putPolicy saves a policy and addresses, and puts them in force. The caller holds mu.
func (c *Controller) putPolicy(v *attachment, policy api.Policy, kept api.Addresses) (api.PolicyResponse, error) {
	if err := c.savePolicy(v, policy, kept); err != nil { // what cannot be kept is not put in force
		return api.PolicyResponse{}, fmt.Errorf("policy: VM %s: unchanged: %w", v.req.VM, err)
	}
	if err := v.setPolicy(policy, kept); err != nil {
		c.saveInForce()
		return api.PolicyResponse{}, err
	}
	v.up.syncHost()
	c.remember()
	r := v.policyResponse()
	c.log.Info("policy", "vm", v.req.VM, "coalesce", policy.Coalesce, "profile", policy.Profile, "in_effect", r.Effective, "hold", policy.Hold())
	return r, nil
}

func (v *attachment) policyResponse() api.PolicyResponse {
	p, profile, note := v.effective()
	r := api.PolicyResponse{Schema: api.Schema, VM: v.req.VM, Policy: p, Effective: profile, Note: note, MACs: v.kept.MACs, IPs: v.kept.IPs}
	r.UDPMerged, r.UDPNote = v.mergesUDP()
	r.HoldNowNS = report.HoldNow(v.up.look(), v.idx).Nanoseconds()
	return r
}
