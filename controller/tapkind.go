package controller

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// tapKind is a VM that stays on its own tap: we put superframes on the tap, by a ring of /dev/vhost-net or a packet socket. Its
// fields are guarded by the attachment's lock.
type tapKind struct {
	guest    netdev.Guest  // how it is looked for
	proof    *netdev.Proof // that the VM is behind it
	halt     string        // why nothing is steered here in spite of the policy, "" when nothing is in the way
	facts    *netdev.TapFacts
	way      api.Feed // api.FeedVhostNet or api.FeedPacket
	note     string   // why it is not api.FeedVhostNet
	tc       *bpf.TapProgram
	bridge   *netdev.BridgePorts // where the VM's senders have to stay known; nil without a bridge
	bypassed []string            // rules that no longer see the frames, accepted with --bypass-filters
	flags    uint32              // of the XDP program's port
	seen     []uint64            // by queue: the worker's activity at the last look
	errFDs   []int               // by queue: readable when the kernel has given the ring up, -1 for a packet socket
	sockets  []int               // by queue: the packet sockets, which are the guests'
	given    []int               // by queue: packet sockets of a process before this one, for openGuest
	dropped  uint64              // the tap's own drops before we came
	was      packedTap           // what it was built from
}

func wantsTap(req *api.AttachRequest) bool { return req.Tap != "" || req.Domain != "" }

func newTapKind(req *api.AttachRequest) (kind, error) {
	switch {
	case req.TrustTap && req.Tap == "":
		return nil, fmt.Errorf("trust-tap: %w: it is your word for the tap that --tap names", ErrUsage)
	case req.Tap == req.Iface:
		return nil, fmt.Errorf("tap %s: %w: it is the interface itself: name the VM's tap", req.Tap, ErrUsage)
	case req.AllowSpoof:
		return nil, fmt.Errorf("allow-spoof: %w: what a VM sends through its own tap does not pass us", ErrUsage)
	case req.MTU != 0:
		return nil, fmt.Errorf("mtu: %w: a VM's tap has an MTU of its own: 'ip link set dev %s mtu %d'", ErrUsage, cmp.Or(req.Tap, "TAP"), req.MTU)
	case req.AnyMemory:
		return nil, fmt.Errorf("any-memory: %w: a VM on its own tap shares no memory with us", ErrUsage)
	}
	return &tapKind{}, nil
}

// sweepTap takes off a VM's tap what a controller that died left there: a filter under clsact outlives its process.
func sweepTap(vm *state.VM) error {
	if vm.Tap == nil || vm.Tap.Device == "" {
		return nil
	}
	f, err := netdev.InspectTap(vm.Tap.Device)
	if err != nil { // gone, and the filter with it
		return nil
	}
	if err := bpf.RemoveStaleTap(f.Index); err != nil {
		return fmt.Errorf("tap %s: TC program: %w", vm.Tap.Device, err)
	}
	return nil
}

// open opens a guest per worker, counts what the VM sends, and steers its TCP frames here.
func (t *tapKind) open(a *attachment) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t.chooseWay()
	if err := t.openGuests(a); err != nil {
		return err
	}
	if err := bpf.RemoveStaleTap(t.facts.Index); err != nil {
		return fmt.Errorf("tap %s: %w", t.facts.Name, err)
	}
	t.tc, err = bpf.LoadTap(bpf.TapOptions{
		Ifindex: t.facts.Index, VLAN: a.addr.VLAN, MAC: a.addr.MAC, Flows: a.flows,
	})
	if err == nil {
		err = t.tc.Attach()
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", t.facts.Name, err)
	}
	a.running = true
	_, flags := t.rules(a.policy)
	return t.steer(a, flags, a.policy.ExcludePorts)
}

// chooseWay takes the better feed that the host has.
func (t *tapKind) chooseWay() {
	t.way, t.note = api.FeedVhostNet, ""
	if err := tap.Available(); err != nil {
		t.way, t.note = api.FeedPacket, err.Error()
	}
}

// openGuests gives every worker its way to the tap.
func (t *tapKind) openGuests(a *attachment) error {
	t.seen, t.errFDs, t.sockets = nil, nil, nil
	cfg, _ := t.rules(a.policy)
	for _, q := range a.up.queues {
		g, err := t.openGuest(q, a.up.room())
		if err != nil {
			return fmt.Errorf("tap %s: %w", t.facts.Name, err)
		}
		if err := q.StartPort(a.idx, g, nil, cfg); err != nil {
			return err
		}
	}
	return nil
}

// openGuest opens the way to the tap from one NIC queue, over the packet socket alone when vhost-net turns out not to do. It
// opens in the calling thread's namespace.
func (t *tapKind) openGuest(q *queue, room frameRoom) (datapath.Guest, error) {
	pkt, err := t.openPacket(len(t.sockets))
	if err != nil {
		return nil, err
	}
	t.sockets = append(t.sockets, pkt.FD())
	if t.way == api.FeedVhostNet {
		ring, err := tap.OpenNet(tap.NetConfig{Umem: q.sock.Memory(), Backend: pkt, MaxFrags: datapath.MaxTapSegments + 1, MaxCopy: max(room.chunk, room.frame)})
		if err == nil {
			t.errFDs = append(t.errFDs, ring.ErrFD())
			return datapath.NewRingGuest(ring, pkt, q.sock), nil
		}
		if errors.Is(err, tap.ErrGone) {
			return nil, errors.Join(err, pkt.Close())
		}
		t.way, t.note = api.FeedPacket, err.Error()
	}
	t.errFDs = append(t.errFDs, -1)
	return datapath.NewPacketGuest(pkt, q.sock), nil
}

// openPacket opens the packet socket of a queue, or goes on with the one that was given for its place among the queues.
func (t *tapKind) openPacket(queue int) (*tap.Packet, error) {
	if queue >= len(t.given) {
		return tap.OpenPacket(t.facts.Index)
	}
	fd := t.given[queue]
	t.given[queue] = -1
	return tap.AdoptPacket(fd, t.facts.Index)
}

// close ends steering and counting. The guests end with the workers' ports.
func (t *tapKind) close(a *attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	if t.tc != nil {
		errs = append(errs, t.tc.Close())
		t.tc = nil
	}
	if a.running {
		a.running = false
		errs = append(errs, t.settle(a))
	}
	return errors.Join(append(errs, a.up.prog.SetExcluded(a.id(), nil))...)
}

// check follows what changed at the VM's tap: who is behind it, what is on its path, the guest's offloads, the MTU. The error is
// that the tap, or the way to it, is gone.
func (t *tapKind) check(a *attachment, look *look) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, err := look.handle()
	if err != nil {
		return err // what cannot be asked is not proved
	}
	halt, err := t.confirm(a, h)
	if err != nil {
		return err
	}
	facts, err := h.InspectTap(t.proof.Tap)
	switch {
	case err != nil:
		return err
	case facts.Index != t.facts.Index:
		return fmt.Errorf("tap %s: %w: it was made anew", facts.Name, tap.ErrGone)
	case halt == "" && !facts.Carrier:
		halt = noReader
	}
	was := t.facts
	t.facts, a.req.Tap = facts, facts.Name
	if halt == "" {
		halt = t.filtered(a, look, h)
	}
	if halt != "" && halt != noReader {
		look.doubt() // it may be that it could not be asked
	}
	mtu, by := facts.MTU != was.MTU, t.stirred(a)
	ask := by
	if mtu {
		ask = a.up.queues
	}
	for _, q := range ask {
		if err := q.CheckGuest(a.idx, mtu); err != nil {
			return err
		}
	}
	if facts.Offloads != was.Offloads {
		a.log.Info("the guest changed its offloads", "csum", facts.Offloads.Csum, "tso4", facts.Offloads.TSO4, "tso6", facts.Offloads.TSO6, "ecn", facts.Offloads.ECN, "uso", facts.Offloads.USO)
	}
	if facts.Offloads != was.Offloads || halt != t.halt {
		t.setHalt(a, halt)
		if err := t.enforce(a, a.policy); err != nil {
			return err
		}
	}
	if err := t.refreshSenders(a, h, by); err != nil {
		look.doubt()
		a.log.Warn("bridge: forwarding entries", "err", err)
	}
	return nil
}

// refreshSenders tells the bridge of the senders whose frames it does not see, as those frames would have: without it their
// entries age, and what the VM sends to them is flooded to every port.
func (t *tapKind) refreshSenders(a *attachment, h *netdev.Handle, by []*queue) error {
	if t.bridge == nil {
		return nil
	}
	macs := senders(a, by)
	if len(macs) == 0 {
		return nil
	}
	return h.RefreshFDB(t.bridge.Port.Index, t.bridge.VID, macs)
}

func (t *tapKind) features() virtio.Features {
	f := virtio.Features(0)
	for _, o := range []struct {
		on  bool
		bit uint
	}{
		{t.facts.Offloads.Csum, virtio.FGuestCsum}, {t.facts.Offloads.TSO4, virtio.FGuestTSO4},
		{t.facts.Offloads.TSO6, virtio.FGuestTSO6}, {t.facts.Offloads.ECN, virtio.FGuestECN},
		{t.facts.Offloads.USO, virtio.FGuestUSO4}, {t.facts.Offloads.USO, virtio.FGuestUSO6},
	} {
		if o.on {
			f |= virtio.Mask(o.bit)
		}
	}
	return f
}

func (t *tapKind) uplinkMTU(int)  {} // the tap has its own
func (t *tapKind) bridged() bool  { return true }
func (t *tapKind) feed() api.Feed { return t.way }
func (t *tapKind) to() string     { return t.facts.Name }
func (t *tapKind) watched() int   { return t.facts.Index }
func (t *tapKind) claim() string {
	if t.proof == nil {
		return ""
	}
	return "tap " + t.proof.Tap
}

// restless: a bridge that forgets its senders soon is told of them soon.
func (t *tapKind) restless() time.Duration {
	if t.bridge == nil || t.bridge.Ageing == 0 {
		return 0
	}
	return max(t.bridge.Ageing/4, leastLook)
}

func (t *tapKind) describe(a *attachment, vm *report.VM) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := &vm.Port
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
		p.Warnings = append(p.Warnings, fmt.Sprintf("VM %s has the kernel's path: %s", a.req.VM, t.halt))
	}
	if facts, err := netdev.InspectTap(t.facts.Name); err == nil {
		vm.TapDropped = facts.TxDropped - t.dropped
	}
	if vm.TapOutcomes, err = t.tc.Outcomes(); err != nil {
		return fmt.Errorf("tap %s: outcomes: %w", t.facts.Name, err)
	}
	return nil
}
