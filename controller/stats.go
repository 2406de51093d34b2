package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/metrics"
	"github.com/rscctl/rscctl/controller/report"
)

// Stats returns every counter of one VM, or with vm empty of all.
func (c *Controller) Stats(vm string) (api.Stats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if vm != "" {
		if _, err := c.findVM(vm); err != nil {
			return report.Stats(&report.Snapshot{}, ""), fmt.Errorf("stats: %w", err)
		}
	}
	s, err := c.snapshot("")
	return report.Stats(s, vm), err
}

// serveMetrics answers scrapes until ctx ends. Their end is no reason to end the VMs.
func (c *Controller) serveMetrics(ctx context.Context) {
	srv := metrics.Server(metrics.Handler(c.opt.Version, c.lookForMetrics))
	if err := serveUntil(ctx, srv, metrics.Limit(c.scrapes)); err != nil {
		c.log.Error("metrics: no longer served", "err", err)
	}
}

// lookForMetrics is one look for a scrape: one message to each worker.
func (c *Controller) lookForMetrics() (metrics.Look, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.snapshot("")
	l := metrics.Look{Status: c.statusHead(""), Stats: report.Stats(s, "")}
	l.Status.Interfaces = report.Interfaces(s)
	l.Status.Health = report.Health(&l.Status)
	return l, err
}

// snapshot takes the state of all interfaces, or of one: one message to each worker, for all its VMs. A worker that does not
// answer is part of it. The caller holds mu.
func (c *Controller) snapshot(iface string) (*report.Snapshot, error) {
	s := &report.Snapshot{}
	for _, name := range slices.Sorted(maps.Keys(c.uplinks)) {
		if iface != "" && iface != name {
			continue
		}
		u, err := c.uplinks[name].snapshot()
		if err != nil {
			return s, err
		}
		s.Uplinks = append(s.Uplinks, u)
	}
	return s, nil
}

func (u *uplink) snapshot() (report.Uplink, error) {
	s := report.Uplink{
		Name: u.name, Index: u.facts.Index, MTU: u.facts.MTU, Driver: u.facts.Driver, Up: u.facts.Up, Carrier: u.facts.Running, XDPMode: api.XDPMode(u.prog.Mode()),
		ZeroCopy: u.queues[0].sock.ZeroCopy(), ChunkSize: u.chunk, BusyPoll: u.tune.busyPoll, Warnings: u.allWarnings(),
		Queues: u.look(),
	}
	bond, wrong := u.describeBond()
	s.Bond, s.Warnings = bond, append(slices.Clone(s.Warnings), wrong...)
	if s.Foreign = u.describeForeign(); s.Foreign != nil {
		s.Warnings = append(s.Warnings, u.foreign.trouble...)
	}
	if senders := u.askSenders(); senders != "" {
		s.Warnings = append(slices.Clone(s.Warnings), senders)
	}
	for _, ch := range u.changes {
		s.Changes = append(s.Changes, hostchange.Text(ch))
	}
	var err error
	if s.Outcomes, err = u.prog.Outcomes(); err != nil {
		return s, fmt.Errorf("interface %s: outcomes: %w", u.name, err)
	}
	if u.host != nil {
		if s.Host, err = u.host.prog.Outcomes(); err != nil {
			return s, fmt.Errorf("interface %s: host: outcomes: %w", u.name, err)
		}
	}
	for _, v := range u.sorted() {
		vm, err := v.describe()
		if err != nil {
			return s, err
		}
		if vm.PartialPast = v.partialPast(&s, &vm); s.Remedy == "" && s.PartialChecksums(&vm) > 0 && !vm.PartialPast {
			s.Remedy = u.partialRemedy()
		}
		s.VMs = append(s.VMs, vm)
	}
	return s, nil
}

// look asks every worker for its snapshot.
func (u *uplink) look() []report.Queue {
	out := make([]report.Queue, len(u.queues))
	for i, q := range u.queues {
		out[i] = u.lookAt(q)
	}
	return out
}

func (u *uplink) lookAt(q *queue) report.Queue {
	out := report.Queue{ID: q.id, Before: q.before, CPUs: q.cpus}
	if u.bond != nil {
		out.Device, out.NIC = q.dev.facts.Name, q.nic
	}
	out.Seen, out.Err = q.Snapshot()
	h := q.shares.Hangs()
	out.Hangs, out.HangPassed = h.Times, h.Passed
	out.Refused, out.RefusedOf = q.shares.Refused()
	return out
}

func (u *uplink) sorted() []*attachment {
	out := make([]*attachment, 0, len(u.vms))
	for _, name := range slices.Sorted(maps.Keys(u.vms)) {
		out = append(out, u.vms[name])
	}
	return out
}
