package controller

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// vmPort is one attached VM: its address, its policy, and its vhost-user port or its tap. The hooks of a vhost-user port run
// on its control goroutine, the rest on the controller's; mu guards what both touch.
type vmPort struct {
	req   api.AttachRequest
	idx   uint32 // of its port on the workers
	gen   uint32 // how many VMs had idx before
	addr  datapath.Addr
	up    *uplink
	log   *slog.Logger
	flows *ebpf.Map
	port  *vhost.Port // nil for a VM on its own tap
	tap   *tapGuest   // nil for a vhost-user VM

	mu      sync.Mutex
	policy  api.Policy
	running bool
	partial uint64 // partial checksums seen when the last warning was logged
}

func (v *vmPort) key() bpf.PortKey { return bpf.PortKey{VLAN: v.addr.VLAN, MAC: v.addr.MAC} }

// id is what XDP knows the VM by.
func (v *vmPort) id() uint32 { return bpf.PortID(v.idx, v.gen) }

// portConfig is what the workers must know of the VM. What else reaches a VM on its own tap, the kernel's bridge brings.
func (v *vmPort) portConfig() datapath.PortConfig {
	onTap := v.tap != nil
	return datapath.PortConfig{Index: v.idx, Generation: v.gen, Addr: v.addr, AllowSpoof: v.req.AllowSpoof, Bridged: onTap, NoteSenders: onTap}
}

// started is called when the guest's rings run: every worker gets its queues and the rules of the negotiated features.
func (v *vmPort) started(p *vhost.Port) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.port = p // the first start can come before NewPort has returned
	cfg := portConfig(v.policy, p.Features())
	pairs := max(1, p.Pairs())
	v.running = true
	err := v.up.each(func(q *queue) error {
		// The NIC keeps a flow on one of its queues, and a worker on one pair, so a flow stays on one pair. TX virtqueue i is read by
		// worker i modulo their number.
		var sources []datapath.Source
		for i := q.id; i < pairs; i += len(v.up.queues) {
			sources = append(sources, p.TX(i))
		}
		return q.StartPort(v.idx, datapath.NewUserGuest(p.RX(q.id%pairs), q.sock), sources, cfg)
	})
	if err != nil {
		v.log.Error("port: start", "err", err)
	}
	prof, note := effective(v.policy, p.Features(), true)
	v.log.Info("guest running", "pairs", pairs, "profile", prof, "note", note)
}

// beforePause is called before the rings change and go on: what comes for the VM waits in the workers until started.
func (v *vmPort) beforePause(*vhost.Port) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.up.each(func(q *queue) error { return q.PausePort(v.idx) }); err != nil {
		v.log.Error("port: pause", "err", err)
	}
}

// beforeStop is called before the rings stop or change: what is held is delivered, the queues are forgotten.
func (v *vmPort) beforeStop(*vhost.Port) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.running {
		return
	}
	v.running = false
	if err := v.up.each(func(q *queue) error { return q.StopPort(v.idx) }); err != nil {
		v.log.Error("port: stop", "err", err)
	}
}

func (v *vmPort) stopped(_ *vhost.Port, reason error) {
	if reason != nil {
		v.log.Warn("port stopped", "reason", reason)
	} else {
		v.log.Info("port stopped")
	}
}

// setPolicy puts a policy in force on every worker. When it returns, all that was held under the old one is delivered.
func (v *vmPort) setPolicy(p api.Policy) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tap != nil {
		if err := v.setTapPolicy(p); err != nil {
			return fmt.Errorf("policy: %s: %w", v.req.VM, err)
		}
	} else if v.running {
		cfg := portConfig(p, v.port.Features())
		if err := v.up.each(func(q *queue) error { return q.SetRules(v.idx, cfg) }); err != nil {
			return fmt.Errorf("policy: %s: %w", v.req.VM, err)
		}
	}
	v.policy = p
	return nil
}

// saved is the VM as the state file keeps it.
func (v *vmPort) saved() state.VM {
	policy, _, _ := v.effective()
	return savedVM(v.req, policy)
}

// effective is the profile in force and why.
func (v *vmPort) effective() (p api.Policy, profile api.Profile, note string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	profile, note = effective(v.policy, v.features(), v.running)
	return v.policy, profile, note
}

func (v *vmPort) features() virtio.Features {
	switch {
	case v.tap != nil:
		return v.tap.features()
	case v.port != nil:
		return v.port.Features()
	}
	return 0
}
