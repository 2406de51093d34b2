package controller

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// inFlight is what a frame needs at most from XDP's look at the steering to the RX ring: the rest of a NAPI poll.
const inFlight = 2 * time.Millisecond

// tapRules turns a policy and what the guest takes into the flow table's rules and into the steering: what would not be
// merged anyway stays on the kernel path.
func tapRules(p api.Policy, f virtio.Features) (flowtable.PortConfig, uint32) {
	cfg := portConfig(p, f)
	cfg.MaxFrame = tap.MaxLen
	if cfg.MaxSegments == 0 || cfg.MaxSegments > datapath.MaxTapSegments {
		cfg.MaxSegments = datapath.MaxTapSegments
	}
	v4, v6 := p.IPv4 && cfg.TSO4, p.IPv6 && cfg.TSO6
	udp4, udp6 := p.IPv4 && cfg.UDP && cfg.USO4, p.IPv6 && cfg.UDP && cfg.USO6
	if !p.Coalesce || !cfg.GuestCsum || !(v4 || v6 || udp4 || udp6) {
		return cfg, 0
	}
	flags := uint32(bpf.FlagSteer | bpf.FlagTCPOnly | bpf.FlagFailOpen)
	if !v4 {
		flags |= bpf.FlagNoV4
	}
	if !v6 {
		flags |= bpf.FlagNoV6
	}
	if udp4 {
		flags |= bpf.FlagUDP4
	}
	if udp6 {
		flags |= bpf.FlagUDP6
	}
	if len(p.ExcludePorts) > 0 {
		flags |= bpf.FlagExcludes
	}
	return cfg, flags
}

// rules are tapRules for what the guest takes now, with nothing steered while something is in the way.
func (t *tapKind) rules(p api.Policy) (flowtable.PortConfig, uint32) {
	cfg, flags := tapRules(p, t.features())
	if t.halt != "" {
		flags = 0
	}
	return cfg, flags
}

// enforce puts a policy or the guest's new offloads in force. The order keeps what is held in front of what follows: first the
// rules, which seal what is open under the old ones, then the steering, then what was on its way.
func (t *tapKind) enforce(a *attachment, p api.Policy) error {
	cfg, flags := t.rules(p)
	if err := a.up.each(func(q *queue) error { return q.SetRules(a.idx, cfg) }); err != nil {
		return err
	}
	return t.steer(a, flags, p.ExcludePorts)
}

// steer sets what of the VM's frames XDP sends to us. When it returns after a change that takes frames away, those that were
// on their way have been delivered. The caller holds a.mu.
func (t *tapKind) steer(a *attachment, flags uint32, exclude []uint16) error {
	u := a.up
	if err := u.prog.SetExcluded(a.id(), exclude); err != nil {
		return err
	}
	was, now := t.flags&bpf.FlagSteer != 0, flags&bpf.FlagSteer != 0
	if err := u.each(func(q *queue) error { return q.SetLate(a.idx, !now) }); err != nil {
		return err
	}
	if err := u.prog.SetPort(a.key(), bpf.PortValue{Port: a.id(), Flags: flags}); err != nil {
		return err
	}
	t.flags = flags
	if was {
		if err := t.settle(a); err != nil {
			return err
		}
	}
	return u.setSteering(a.idx, now)
}

// settle delivers what XDP had sent before it was told otherwise.
func (t *tapKind) settle(a *attachment) error {
	drain := func(q *queue) error { return q.Drain() }
	err := a.up.each(drain)
	time.Sleep(inFlight) // an XDP program in the middle of a poll may have read the old value
	return errors.Join(err, a.up.each(drain))
}

// stirred returns the queues to ask about the VM: those whose worker has moved something since the last time, and those whose ring
// the kernel has given up. A worker that sleeps is not woken each second for every VM.
func (t *tapKind) stirred(a *attachment) (out []*queue) {
	if t.seen == nil {
		t.seen = make([]uint64, len(a.up.queues))
	}
	for i, q := range a.up.queues {
		now := q.Activity()
		if now != t.seen[i] || readable(t.errFDs[i]) {
			out = append(out, q)
		}
		t.seen[i] = now
	}
	return out
}

// readable polls a descriptor, false for -1. One whose ring has been closed meanwhile may be somebody else's by now: then we ask in vain.
func readable(fd int) bool {
	if fd < 0 {
		return false
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// senders returns the source addresses of the frames that came for a VM by these queues since the last time.
func senders(a *attachment, by []*queue) (out []net.HardwareAddr) {
	for _, q := range by {
		macs, _ := q.Senders(a.idx) // a worker that is gone has no senders
		for _, m := range macs {
			out = append(out, m[:])
		}
	}
	return out
}
