package controller

import (
	"fmt"

	"github.com/rscctl/rscctl/controller/api"
)

// findVM looks a VM up on every uplink. The caller holds mu.
func (c *Controller) findVM(name string) (*attachment, error) {
	for _, u := range c.uplinks {
		if v := u.vms[name]; v != nil {
			return v, nil
		}
	}
	return nil, fmt.Errorf("VM %s: %w: 'rscctl status' lists what is", name, ErrUnknownVM)
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

// SetPolicy changes or resets the policy of one VM, live. When it returns, what was held under the old one is delivered.
func (c *Controller) SetPolicy(req api.PolicyRequest) (api.PolicyResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.findVM(req.VM)
	if err != nil {
		return api.PolicyResponse{}, fmt.Errorf("policy: %w", err)
	}
	base, _, _ := v.effective()
	if req.Reset {
		base = defaultPolicy()
	}
	policy, err := applyPatch(base, req.Patch)
	if err != nil {
		return api.PolicyResponse{}, err
	}
	if err := c.savePolicy(req.VM, policy); err != nil { // what cannot be kept is not put in force
		return api.PolicyResponse{}, fmt.Errorf("policy: VM %s: unchanged: %w", req.VM, err)
	}
	if err := v.setPolicy(policy); err != nil {
		c.saveInForce()
		return api.PolicyResponse{}, err
	}
	r := v.policyResponse()
	c.log.Info("policy", "vm", req.VM, "coalesce", policy.Coalesce, "profile", r.Effective, "hold_ns", policy.HoldNS)
	return r, nil
}

func (v *attachment) policyResponse() api.PolicyResponse {
	p, profile, note := v.effective()
	return api.PolicyResponse{Schema: api.Schema, VM: v.req.VM, Policy: p, Effective: profile, Note: note}
}
