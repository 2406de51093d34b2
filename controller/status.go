package controller

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/flowtable"
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
	for _, name := range slices.Sorted(maps.Keys(c.uplinks)) {
		if iface != "" && iface != name {
			continue
		}
		i, err := c.uplinks[name].status()
		if err != nil {
			return st, err
		}
		st.Interfaces = append(st.Interfaces, i)
	}
	return st, nil
}

func (u *uplink) status() (api.Interface, error) {
	i := api.Interface{
		Name: u.name, Index: u.facts.Index, MTU: u.facts.MTU, Driver: u.facts.Driver,
		XDPMode: u.prog.Mode(), XSKMode: "copy", Ports: []api.Port{},
		Changes: []string{}, Warnings: slices.Clone(u.warnings),
	}
	for _, ch := range u.changes {
		i.Changes = append(i.Changes, ch.text())
	}
	if u.socks[0].ZeroCopy() {
		i.XSKMode = "zerocopy"
	}
	var err error
	if i.Queues, err = u.queues(); err != nil {
		return i, err
	}
	for _, v := range u.sortedPorts() {
		p, err := v.status()
		if err != nil {
			return i, err
		}
		i.Ports = append(i.Ports, p)
	}
	err = u.each(func(w *worker) { i.Metadata = i.Metadata || w.cnt.withMeta > 0 })
	if i.Warnings == nil {
		i.Warnings = []string{}
	}
	return i, err
}

func (v *vmPort) status() (api.Port, error) {
	policy, profile, note := v.effective()
	p := api.Port{
		VM: v.req.VM, MAC: v.req.MAC, VLAN: v.req.VLAN, Feed: v.feed(),
		Policy: policy, Effective: profile, PolicyNote: note, AllowSpoof: v.req.AllowSpoof, Warnings: []string{},
	}
	f := virtio.Features(0)
	if v.tap != nil {
		f = v.tapStatus(&p)
	} else {
		s := v.port.State()
		f = s.Features
		p.Socket, p.Mode = v.req.VhostUser, "listen"
		p.State, p.StopReason, p.QueuePairs, p.QueueSize = s.Name, s.Reason, s.Pairs, s.QueueSize
		if v.req.Connect {
			p.Mode = "connect"
		}
	}
	p.Features, p.FeatureBits = f.Names(), fmt.Sprintf("%#x", uint64(f))
	n, err := v.partialChecksums()
	if n > 0 {
		p.Warnings = append(p.Warnings, partialWarning(v, n))
	}
	return p, err
}

// partialChecksums counts the frames whose sender left the checksum to an offload that never ran.
func (v *vmPort) partialChecksums() (n uint64, err error) {
	err = v.up.each(func(w *worker) {
		if w.ports[v.idx] != nil {
			n += w.table.Ledger(v.idx).Passed[flowtable.ReasonPartialChecksum]
		}
	})
	return n, err
}

func partialWarning(v *vmPort, n uint64) string {
	return fmt.Sprintf("%d frames for VM %s came with partial checksums, are not merged and will be dropped by the guest: %s", n, v.req.VM, v.up.partialRemedy())
}

// feed names the way to the VM.
func (v *vmPort) feed() string {
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
	p.State, p.Mode, p.QueuePairs = "running", "kernel", t.facts.Queues
	if t.flags&bpf.FlagSteer != 0 {
		p.Mode = "steered"
	}
	if !t.facts.Carrier {
		p.State, p.StopReason = "waiting", "no VM has the tap open"
	}
	return t.features()
}
