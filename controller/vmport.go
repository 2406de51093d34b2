package controller

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// vmPort is one attached VM: its address, its policy, and its vhost-user port or its tap. The hooks of a vhost-user port run
// on its control goroutine, the rest on the controller's; mu guards what both touch.
type vmPort struct {
	req  api.AttachRequest
	idx  uint32
	addr portAddr
	up   *uplink
	log  *slog.Logger
	port *vhost.Port // nil for a VM on its own tap
	tap  *tapGuest   // nil for a vhost-user VM

	mu      sync.Mutex
	policy  api.Policy
	running bool
	partial uint64 // partial checksums seen when the last warning was logged
}

func (v *vmPort) key() bpf.PortKey { return bpf.PortKey{VLAN: v.addr.vlan, MAC: v.addr.mac} }

// started is called when the guest's rings run: every worker gets its queues and the rules of the negotiated features.
func (v *vmPort) started(p *vhost.Port) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.port = p // the first start can come before NewPort has returned
	cfg := portConfig(v.policy, p.Features())
	pairs := max(1, p.Pairs())
	v.running = true
	err := v.up.each(func(w *worker) { w.startPort(v.idx, p, pairs, len(v.up.workers), cfg) })
	if err != nil {
		v.log.Error("port: start", "err", err)
	}
	prof, note := effective(v.policy, p.Features(), true)
	v.log.Info("guest running", "pairs", pairs, "profile", prof, "note", note)
}

// beforeStop is called before the rings stop or change: what is held is delivered, the queues are forgotten.
func (v *vmPort) beforeStop(*vhost.Port) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.running {
		return
	}
	v.running = false
	if err := v.up.each(func(w *worker) { w.stopPort(v.idx) }); err != nil {
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
		var bad error
		err := v.up.each(func(w *worker) {
			if err := w.table.SetPort(v.idx, cfg, w.now); err != nil {
				bad = err
			}
			w.flush()
		})
		if err == nil {
			err = bad
		}
		if err != nil {
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
func (v *vmPort) effective() (p api.Policy, profile, note string) {
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

// The following run on a worker.

// addPort makes the VM known to a worker; frames for it are counted as port_down until startPort.
func (w *worker) addPort(v *vmPort) {
	l := w.table.Ledger(v.idx)
	l.Reset() // the index may have been another VM's
	p := &workerPort{idx: v.idx, addr: v.addr, allowSpoof: v.req.AllowSpoof, out: newOutQueue(l)}
	w.ports[v.idx] = p
	w.byAddr[v.addr] = p
	w.list = append(w.list, p)
	w.fdsStale = true
}

// removePort forgets a VM. Its held segments were delivered or counted by stopPort.
func (w *worker) removePort(idx uint32) {
	p := w.ports[idx]
	if p == nil {
		return
	}
	w.stopPort(idx)
	w.ports[idx] = nil
	delete(w.byAddr, p.addr)
	for i, q := range w.list {
		if q == p {
			w.list = append(w.list[:i], w.list[i+1:]...)
			break
		}
	}
	w.fdsStale = true
}

// startPort gives a worker its queues of a running guest. The NIC keeps a flow on one of its queues, and a worker on one
// queue pair, so a flow stays on one pair. TX virtqueue i is read by worker i modulo their number.
func (w *worker) startPort(idx uint32, port *vhost.Port, pairs, workers int, cfg flowtable.PortConfig) {
	p := w.ports[idx]
	if p == nil {
		return
	}
	if err := w.table.SetPort(idx, cfg, w.now); err != nil {
		w.log.Error("worker: policy", "err", err)
		return
	}
	w.flushPort(p)
	w.dropTxRings(p)
	p.rx = port.RX(w.id % pairs)
	for i := w.id; i < pairs; i += workers {
		r := &txRing{q: port.TX(i), port: p}
		r.emit = func(f *vhost.TxFrame) bool { return w.emit(p, f) }
		w.tx = append(w.tx, r)
	}
	p.running = true
	w.fdsStale = true
}

// stopPort delivers what is held for a port, gives up (counted) what its guest has no buffers for, and forgets its queues.
func (w *worker) stopPort(idx uint32) {
	p := w.ports[idx]
	if p == nil || !p.running {
		return
	}
	w.table.ClearPort(idx, flowtable.ReasonStop, w.now)
	w.flushPort(p)
	w.dropQueued(p, flowtable.ReasonPortDown)
	w.setBlocked(p, false)
	if p.tap != nil {
		w.stopTap(p)
	}
	p.running, p.rx = false, nil
	w.dropTxRings(p)
	w.fdsStale = true
}

func (w *worker) dropTxRings(p *workerPort) {
	keep := w.tx[:0]
	for _, r := range w.tx {
		if r.port != p {
			keep = append(keep, r)
		}
	}
	w.tx = keep
}
