package controller

import (
	"fmt"
	"os"
	"slices"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Status reports the whole controller, or with iface given one interface.
func (c *Controller) Status(iface string) (api.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := api.Status{
		Schema: api.Schema, PID: os.Getpid(), Version: c.opt.Version, StartedAt: c.started, State: c.opt.State,
		FlowsPin: c.flowsPin, Warnings: slices.Clone(c.warnings), Interfaces: []api.Interface{}, Waiting: c.waitingList(iface),
	}
	st.Warnings = append(st.Warnings, c.stateWarnings()...)
	if st.Warnings == nil {
		st.Warnings = []string{}
	}
	if iface != "" && c.uplinks[iface] == nil && c.waiting[iface] == nil {
		return st, fmt.Errorf("status: interface %s: %w: 'rscctl status' lists what is", iface, ErrUnknownIface)
	}
	snap, err := c.snapshot(iface)
	st.Interfaces = report.Interfaces(snap)
	return st, err
}

// describe is a VM's part of a snapshot.
func (v *vmPort) describe() (report.VM, error) {
	policy, profile, note := v.effective()
	p := api.Port{
		VM: v.req.VM, MAC: v.req.MAC, VLAN: v.req.VLAN, Feed: v.feed(),
		Policy: policy, Effective: profile, PolicyNote: note, AllowSpoof: v.req.AllowSpoof,
	}
	vm := report.VM{Index: v.idx}
	f := virtio.Features(0)
	if v.tap != nil {
		f = v.tapStatus(&p)
		if facts, err := netdev.InspectTap(v.tap.facts.Name); err == nil {
			vm.TapDropped = facts.TxDropped - v.tap.dropped
		}
		var err error
		if vm.TapOutcomes, err = v.tap.tc.Outcomes(); err != nil {
			return vm, fmt.Errorf("tap %s: outcomes: %w", v.tap.facts.Name, err)
		}
	} else {
		s := v.port.State()
		f = s.Features
		p.Socket, p.Mode = v.req.VhostUser, api.ModeListen
		p.State, p.StopReason, p.QueuePairs, p.QueueSize = api.PortState(s.Name), s.Reason, s.Pairs, s.QueueSize
		if v.req.Connect {
			p.Mode = api.ModeConnect
		}
		c := v.port.Counters()
		vm.Interrupts, vm.TxDropped, vm.Vhost = c.Calls, c.TxDropped, c.Named()
	}
	p.Features, p.FeatureBits = f.Names(), fmt.Sprintf("%#x", uint64(f))
	vm.Port = p
	return vm, nil
}

// feed names the way to the VM.
func (v *vmPort) feed() api.Feed {
	if v.tap != nil {
		return v.tap.feed
	}
	return feedUser
}

// tapStatus fills in what a VM on its own tap has to show, and returns what its guest takes.
func (v *vmPort) tapStatus(p *api.Port) virtio.Features {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.tap
	p.Tap, p.FeedNote, p.Bypassed = t.facts.Name, t.note, t.bypassed
	p.State, p.Mode, p.QueuePairs = api.PortRunning, api.ModeKernel, t.facts.Queues
	if t.flags&bpf.FlagSteer != 0 {
		p.Mode = api.ModeSteered
	}
	if t.proof != nil {
		p.Proof = t.proof.By
	}
	p.StopReason = t.halt
	if !t.facts.Carrier {
		p.State = api.PortWaiting
	} else if t.halt != "" {
		p.Warnings = append(p.Warnings, "left to the kernel's path: "+t.halt)
	}
	return t.features()
}
