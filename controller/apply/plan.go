package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
)

// Controller is what a plan needs of one. api.Client is one.
type Controller interface {
	Attach(context.Context, api.AttachRequest) (*api.AttachResponse, error)
	Detach(context.Context, api.DetachRequest) (*api.DetachResponse, error)
	SetPolicy(context.Context, api.PolicyRequest) (*api.PolicyResponse, error)
}

// Deed is what a step does.
type Deed string

// Deeds, in the order in which a plan has them: what is given up makes room for what comes.
const (
	Detach    Deed = "detach"
	Change    Deed = "change" // detach and attach: the VM's link goes down for a moment
	SetPolicy Deed = "policy"
	Attach    Deed = "attach"
	Wait      Deed = "wait" // it differs, and cannot be changed while it waits for what it needs
)

// Step is one thing to do.
type Step struct {
	Deed  Deed     `json:"deed"`
	VM    string   `json:"vm"` // "" of SetPolicy: the default policy
	Iface string   `json:"iface"`
	What  []string `json:"what,omitempty"` // the differences, each "name: was -> will be"

	was, want api.AttachRequest
}

// Plan finds out what has to be done for a controller to have what a file says: nothing, when it has. VMs that the file does not
// name are left alone, or with prune detached.
func Plan(f *File, c *api.Config, prune bool) []Step {
	have := map[string]api.AttachRequest{}
	for _, r := range c.VMs {
		have[r.VM] = r
	}
	steps := map[Deed][]Step{}
	defaults := c.DefaultPolicy
	if f.DefaultPolicy != nil {
		defaults = f.DefaultPolicy.patch().Over(api.BuiltinPolicy())
		if what := c.DefaultPolicy.Differences(defaults); len(what) > 0 {
			steps[SetPolicy] = append(steps[SetPolicy], Step{Deed: SetPolicy, What: what, want: api.AttachRequest{Policy: defaults.Patch()}})
		}
	}
	for i := range f.VMs {
		want := f.VMs[i].request(defaults)
		was, there := have[want.VM]
		delete(have, want.VM)
		s := Step{VM: want.VM, Iface: want.Iface, was: was, want: want}
		if !there {
			s.Deed = Attach
		} else if s.What = was.Differences(&want); len(s.What) > 0 {
			s.Deed = Change
		} else if s.What = live(&was, &want, c.DefaultPolicy); len(s.What) > 0 {
			s.Deed = SetPolicy
		} else {
			continue
		}
		if there && slices.Contains(c.Waiting, want.VM) { // it could be attached neither as described nor as it was
			s.Deed = Wait
		}
		steps[s.Deed] = append(steps[s.Deed], s)
	}
	if prune {
		for _, r := range c.VMs {
			if _, left := have[r.VM]; left {
				steps[Detach] = append(steps[Detach], Step{Deed: Detach, VM: r.VM, Iface: r.Iface, was: r})
			}
		}
	}
	return slices.Concat(steps[Detach], steps[Change], steps[SetPolicy], steps[Attach], steps[Wait])
}

// live is what changes while a VM runs: of its policy, and of what it is kept to.
func live(was, want *api.AttachRequest, defaults api.Policy) []string {
	have, _ := api.Addresses{}.With(was.MACs, was.IPs).Canonical(was.MAC)
	kept, _ := api.Addresses{}.With(want.MACs, want.IPs).Canonical(want.MAC) // the file was checked
	return append(was.Policy.Over(defaults).Differences(want.Policy.Over(defaults)), have.Differences(kept)...)
}

// String says what the step does.
func (s *Step) String() string {
	switch s.Deed {
	case Detach:
		return fmt.Sprintf("detach %s from %s", s.VM, s.Iface)
	case Attach:
		return fmt.Sprintf("attach %s to %s", s.VM, s.Iface)
	case Wait:
		return fmt.Sprintf("%s differs, and waits: %s", s.VM, strings.Join(s.What, ", "))
	case Change:
		return fmt.Sprintf("change %s, whose link goes down for a moment: %s", s.VM, strings.Join(s.What, ", "))
	}
	if s.VM == "" {
		return "default policy: " + strings.Join(s.What, ", ")
	}
	return fmt.Sprintf("policy of %s: %s", s.VM, strings.Join(s.What, ", "))
}

// ErrWaits is returned for a VM that differs and waits.
var ErrWaits = errors.New("it waits for what it needs ('rscctl status' says for what): apply again when it is back, or detach it first")

// Do carries the step out and returns the controller's warnings. A VM that cannot be attached as it should be is attached as it was.
// What is half done is done to its end, whatever becomes of ctx.
func (s *Step) Do(ctx context.Context, c Controller) (warnings []string, err error) {
	switch s.Deed {
	case Detach:
		return s.detach(ctx, c)
	case SetPolicy:
		_, err := c.SetPolicy(ctx, api.PolicyRequest{VM: s.VM, Default: s.VM == "", Patch: s.want.Policy, MACs: s.want.MACs, IPs: s.want.IPs})
		return nil, err
	case Change:
		return s.change(context.WithoutCancel(ctx), c)
	case Wait:
		return nil, ErrWaits
	}
	return attach(ctx, c, s.want)
}

func (s *Step) detach(ctx context.Context, c Controller) (warnings []string, err error) {
	r, err := c.Detach(ctx, api.DetachRequest{Iface: s.was.Iface, VM: s.VM})
	if err != nil {
		return nil, err
	}
	return r.Warnings, nil
}

func attach(ctx context.Context, c Controller, req api.AttachRequest) (warnings []string, err error) {
	r, err := c.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	return r.Warnings, nil
}

// Renew carries out a Wait step by detaching and attaching: for a controller whose Attach loses no VM, because one that it cannot attach
// waits with it.
func (s *Step) Renew(ctx context.Context, c Controller) (warnings []string, err error) {
	ctx = context.WithoutCancel(ctx)
	warnings, err = s.detach(ctx, c)
	if err != nil {
		return nil, err
	}
	more, err := attach(ctx, c, s.want)
	return append(warnings, more...), err
}

// change takes a VM off and attaches it in its new form, or in the old one. A detach that fails may have taken it off all the same.
func (s *Step) change(ctx context.Context, c Controller) (warnings []string, err error) {
	warnings, failed := s.detach(ctx, c)
	more, err := attach(ctx, c, s.want)
	switch {
	case err == nil && failed != nil:
		return append(more, failed.Error()), nil
	case err == nil:
		return append(warnings, more...), nil
	case failed != nil && errors.Is(err, api.ErrTaken): // by itself
		return nil, failed
	}
	if _, again := c.Attach(ctx, s.was); again != nil {
		return warnings, errors.Join(err, fmt.Errorf("and not attached as it was: %w", again))
	}
	return warnings, fmt.Errorf("%w; it is attached as it was", err)
}

// Try asks the controller whether it would attach the VM of an Attach step, or change that of a Change step where interface and address
// stay. Of detaching, and of a VM that moves, nothing can be asked beforehand: its name is taken, by itself.
func (s *Step) Try(ctx context.Context, c Controller) (warnings []string, err error) {
	switch {
	case s.Deed == Attach, s.Deed == Change && s.was.Iface == s.want.Iface && s.was.MAC == s.want.MAC:
		dry := s.want
		dry.DryRun = true
		return attach(ctx, c, dry)
	case s.Deed == Wait:
		return nil, ErrWaits
	}
	return nil, nil
}
