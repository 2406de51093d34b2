package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/controller"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/apply"
)

// configure brings the controller to what the file describes, as 'rscctl apply' does, and says in a few words what came of it. A VM that
// cannot be attached waits, with the reason, and holds up none of the others. A file that cannot be read changes nothing: the VMs that
// the controller has go on.
func (s *service) configure(ctx context.Context) (status string) {
	if s.config == "" {
		return "serving"
	}
	f, err := readDescription(s.config, nil)
	if err != nil {
		s.log.Error("configuration: not put in force", "err", err)
		return "serving; configuration not put in force: " + oneLine(err.Error())
	}
	config := s.ctl.Config()
	failed := 0
	for _, step := range apply.Plan(f, &config, false) {
		if ctx.Err() != nil {
			break
		}
		warnings, err := s.carryOut(ctx, &step)
		for _, w := range warnings {
			s.log.Warn("configuration", "step", step.String(), "warning", w)
		}
		if err != nil {
			failed++
			s.log.Error("configuration: step failed", "step", step.String(), "err", err)
		} else {
			s.log.Info("configuration", "step", step.String())
		}
	}
	if failed > 0 {
		return fmt.Sprintf("serving; configuration: %s", plural(failed, "step failed", "steps failed"))
	}
	return "serving"
}

// carryOut does a step. A running VM that cannot be attached in its new form goes on in the old one; one that does not run waits in the
// described form, whatever it waited in before.
func (s *service) carryOut(ctx context.Context, step *apply.Step) (warnings []string, err error) {
	switch step.Deed {
	case apply.Attach:
		return step.Do(ctx, patient{inProcess{s.ctl}})
	case apply.Wait:
		return step.Renew(ctx, patient{inProcess{s.ctl}})
	}
	return step.Do(ctx, inProcess{s.ctl})
}

// inProcess is the controller of this process as apply takes one.
type inProcess struct{ ctl *controller.Controller }

func (p inProcess) Attach(_ context.Context, req api.AttachRequest) (*api.AttachResponse, error) {
	r, err := p.ctl.Attach(req)
	return &r, err
}

func (p inProcess) Detach(_ context.Context, req api.DetachRequest) (*api.DetachResponse, error) {
	r, err := p.ctl.Detach(req)
	return &r, err
}

func (p inProcess) SetPolicy(_ context.Context, req api.PolicyRequest) (*api.PolicyResponse, error) {
	r, err := p.ctl.SetPolicy(req)
	return &r, err
}

// patient lets a VM that cannot be attached wait.
type patient struct{ inProcess }

func (p patient) Attach(ctx context.Context, req api.AttachRequest) (*api.AttachResponse, error) {
	r, err := p.inProcess.Attach(ctx, req)
	if err == nil {
		return r, nil
	}
	if refused := p.ctl.Expect(req, err); refused != nil {
		return nil, errors.Join(err, refused)
	}
	r.Warnings = append(r.Warnings, "not attached, it waits: "+err.Error())
	return r, nil
}
