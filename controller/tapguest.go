package controller

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/kernel"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Names of the feeds, as status shows them.
const (
	feedUser   = api.FeedVhostUser
	feedNet    = api.FeedVhostNet
	feedPacket = api.FeedPacket
)

const (
	// inFlight is what a frame needs at most from XDP's look at the steering to the RX ring: the rest of a NAPI poll.
	inFlight = 2 * time.Millisecond
)

// tapGuest is the VM's side of a vmPort that stays on its own tap. Guarded as vmPort is.
type tapGuest struct {
	guest    netdev.Guest  // how it is looked for
	proof    *netdev.Proof // that the VM is behind it
	halt     string        // why nothing is steered here in spite of the policy, "" when nothing is in the way
	facts    *netdev.TapFacts
	feed     api.Feed // feedNet or feedPacket
	note     string   // why it is not feedNet
	tc       *bpf.TapProgram
	bridge   *netdev.BridgePorts // where the VM's senders have to stay known; nil without a bridge
	bypassed []string            // rules that no longer see the frames, accepted with --bypass-filters
	flags    uint32              // of the XDP program's port
	dropped  uint64              // the tap's own drops before we came
}

func (t *tapGuest) features() virtio.Features {
	f := virtio.Features(0)
	for _, o := range []struct {
		on  bool
		bit uint
	}{
		{t.facts.Offloads.Csum, virtio.FGuestCsum}, {t.facts.Offloads.TSO4, virtio.FGuestTSO4},
		{t.facts.Offloads.TSO6, virtio.FGuestTSO6}, {t.facts.Offloads.ECN, virtio.FGuestECN},
	} {
		if o.on {
			f |= virtio.Mask(o.bit)
		}
	}
	return f
}

// tapRules turns a policy and what the guest takes into the flow table's rules and into the steering: what would not be
// merged anyway stays on the kernel path.
func tapRules(p api.Policy, f virtio.Features) (flowtable.PortConfig, uint32) {
	cfg := portConfig(p, f)
	cfg.MaxFrame = kernel.MaxLen
	if cfg.MaxSegments == 0 || cfg.MaxSegments > datapath.MaxTapSegments {
		cfg.MaxSegments = datapath.MaxTapSegments
	}
	v4, v6 := p.IPv4 && cfg.TSO4, p.IPv6 && cfg.TSO6
	if !p.Coalesce || !cfg.GuestCsum || !(v4 || v6) {
		return cfg, 0
	}
	flags := uint32(bpf.FlagSteer | bpf.FlagTCPOnly)
	if !v4 {
		flags |= bpf.FlagNoV4
	}
	if !v6 {
		flags |= bpf.FlagNoV6
	}
	if len(p.ExcludePorts) > 0 {
		flags |= bpf.FlagExcludes
	}
	return cfg, flags
}

// addTap opens a feed per worker, counts what the VM sends, and steers its TCP frames here. On failure nothing of it stays.
func (u *uplink) addTap(v *vmPort) (err error) {
	t := v.tap
	if err := kernel.Available(); err == nil {
		t.feed = feedNet
	} else {
		t.feed, t.note = feedPacket, err.Error()
	}
	cfg, flags := t.rules(v.policy)
	for _, q := range u.queues {
		g, err := t.openGuest(q)
		if err != nil {
			return fmt.Errorf("tap %s: %w", t.facts.Name, err)
		}
		if err := q.StartPort(v.idx, g, nil, cfg); err != nil {
			return err
		}
	}
	if err := bpf.RemoveStaleTap(t.facts.Index); err != nil {
		return fmt.Errorf("tap %s: %w", t.facts.Name, err)
	}
	t.tc, err = bpf.LoadTap(bpf.TapOptions{
		Ifindex: t.facts.Index, VLAN: v.addr.VLAN, MAC: v.addr.MAC, Flows: v.flows,
	})
	if err == nil {
		err = t.tc.Attach()
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", t.facts.Name, err)
	}
	v.running = true
	return v.steer(flags, v.policy.ExcludePorts)
}

// openGuest opens the way to the tap from one NIC queue, over the packet socket alone when vhost-net turns out not to do. It
// opens in the calling thread's namespace.
func (t *tapGuest) openGuest(q *queue) (datapath.Guest, error) {
	pkt, err := kernel.OpenPacket(t.facts.Index)
	if err != nil {
		return nil, err
	}
	if t.feed == feedNet {
		ring, err := kernel.OpenNet(kernel.NetConfig{Umem: q.sock.Memory(), Backend: pkt, MaxFrags: datapath.MaxTapSegments + 1})
		if err == nil {
			return datapath.NewRingGuest(ring, pkt, q.sock), nil
		}
		if errors.Is(err, kernel.ErrGone) {
			return nil, errors.Join(err, pkt.Close())
		}
		t.feed, t.note = feedPacket, err.Error()
	}
	return datapath.NewPacketGuest(pkt, q.sock), nil
}

// steer sets what of the VM's frames XDP sends to us. When it returns after a change that takes frames away, those that were
// on their way have been delivered. The caller holds v.mu or is the only one who knows v.
func (v *vmPort) steer(flags uint32, exclude []uint16) error {
	u, t := v.up, v.tap
	if err := u.prog.SetExcluded(v.id(), exclude); err != nil {
		return err
	}
	was, now := t.flags&bpf.FlagSteer != 0, flags&bpf.FlagSteer != 0
	if err := u.each(func(q *queue) error { return q.SetLate(v.idx, !now) }); err != nil {
		return err
	}
	if err := u.prog.SetPort(v.key(), bpf.PortValue{Port: v.id(), Flags: flags}); err != nil {
		return err
	}
	t.flags = flags
	if was {
		if err := v.settleTap(); err != nil {
			return err
		}
	}
	return u.setSteering(v.idx, now)
}

// settleTap delivers what XDP had sent before it was told otherwise.
func (v *vmPort) settleTap() error {
	drain := func(q *queue) error { return q.Drain() }
	err := v.up.each(drain)
	time.Sleep(inFlight) // an XDP program in the middle of a poll may have read the old value
	return errors.Join(err, v.up.each(drain))
}

// setTapPolicy puts a policy or the guest's new offloads in force. The order keeps what is held in front of what follows:
// first the rules, which seal what is open under the old ones, then the steering, then what was on its way. The caller holds v.mu.
func (v *vmPort) setTapPolicy(p api.Policy) error {
	cfg, flags := v.tap.rules(p)
	if err := v.up.each(func(q *queue) error { return q.SetRules(v.idx, cfg) }); err != nil {
		return err
	}
	return v.steer(flags, p.ExcludePorts)
}

// removeTap ends steering and counting. The feeds end with the workers' ports.
func (v *vmPort) removeTap() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	if v.tap.tc != nil {
		errs = append(errs, v.tap.tc.Close())
		v.tap.tc = nil
	}
	if v.running {
		v.running = false
		errs = append(errs, v.settleTap())
	}
	return errors.Join(append(errs, v.up.prog.SetExcluded(v.id(), nil))...)
}

// checkTap follows what changed at the VM's tap: who is behind it, what is on its path, the guest's offloads, the MTU. It returns an
// error when the feed has ended.
func (v *vmPort) checkTap(rules *netdev.Rules, rulesErr error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	halt, err := v.confirm()
	if err != nil {
		return err
	}
	facts, err := netdev.InspectTap(v.tap.proof.Tap)
	switch {
	case err != nil:
		return err
	case facts.Index != v.tap.facts.Index:
		return fmt.Errorf("tap %s: %w: it was made anew", facts.Name, kernel.ErrGone)
	case halt == "" && !facts.Carrier:
		halt = noReader
	}
	was := v.tap.facts
	v.tap.facts, v.req.Tap = facts, facts.Name
	if halt == "" && rulesErr != nil {
		halt = rulesErr.Error() // what is not known may be a filter
	} else if halt == "" {
		halt = v.filtered(rules)
	}
	if err := v.feedError(facts.MTU != was.MTU); err != nil {
		return err
	}
	if facts.Offloads != was.Offloads {
		v.log.Info("the guest changed its offloads", "csum", facts.Offloads.Csum, "tso4", facts.Offloads.TSO4, "tso6", facts.Offloads.TSO6, "ecn", facts.Offloads.ECN)
	} else if halt == v.tap.halt {
		return nil
	}
	v.setHalt(halt)
	return v.setTapPolicy(v.policy)
}

// feedError is why a worker's feed has ended, if one has. With refresh the feeds read the tap's MTU again.
func (v *vmPort) feedError(refresh bool) error {
	return v.up.each(func(q *queue) error { return q.CheckGuest(v.idx, refresh) })
}

// senders returns the source addresses of the frames that came for a VM since the last time.
func (v *vmPort) senders() (out []net.HardwareAddr) {
	for _, q := range v.up.queues {
		macs, _ := q.Senders(v.idx) // a worker that is gone has no senders
		for _, m := range macs {
			out = append(out, m[:])
		}
	}
	return out
}
