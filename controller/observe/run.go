package observe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
)

// ErrBusy: another run counts in this network namespace, by filters that this one would take away (Linux before 6.6).
var ErrBusy = errors.New("another observe is counting here")

// ErrPermission: the process lacks what counting takes.
var ErrPermission = errors.New("no permission: run it as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")

// Options say what to count, and for how long.
type Options struct {
	Interfaces []string // none: all taps that a VM has open
	Uplinks    bool     // without Interfaces: the other ports of their bridges as well
	Duration   time.Duration
}

// Run counts in the network namespace of the calling thread, until the time is over or the context ends, takes the programs off again, and
// reports what it has. That the context ended is no error. Errors: ErrNothing, ErrKind, ErrPermission, ErrBusy, netdev.ErrNoDevice,
// bpf.ErrPermission, bpf.ErrUnsupported.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	targets, err := find(o.Interfaces, o.Uplinks)
	if err != nil {
		return nil, err
	}
	if err := permitted(); err != nil {
		return nil, err
	}
	if err := RemoveStale(); err != nil && !errors.Is(err, ErrBusy) {
		return nil, err
	}
	lock, err := takeLock()
	if err != nil {
		return nil, err
	}
	defer lock.release()
	// Before Linux 5.11 maps count as locked memory, and the usual limit is 64 KiB.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("locked memory: the limit cannot be raised: run it under 'ulimit -l unlimited': %w", err)
	}
	obs, err := bpf.LoadObserver(len(targets))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, obs.Close()) }()
	r := run{targets: targets, obs: obs, failed: make([]error, len(targets)), before: make([]netlink.LinkStatistics, len(targets))}
	if err := r.attach(!lock.held()); err != nil {
		return nil, err
	}
	start := time.Now()
	timer := time.NewTimer(o.Duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return r.finish(time.Since(start))
}

// permitted asks the kernel for the effective capabilities. The verifier's own words for one that is missing tell nobody so.
func permitted() error {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if !has(unix.CAP_NET_ADMIN) || !has(unix.CAP_SYS_ADMIN) && !(has(unix.CAP_BPF) && has(unix.CAP_PERFMON)) {
		return ErrPermission
	}
	return nil
}

// RemoveStale takes off what killed runs left on the interfaces of the calling thread's namespace. While another run counts there it
// does nothing and returns ErrBusy.
func RemoveStale() error {
	lock, err := takeLock()
	if err != nil {
		return err
	}
	defer lock.release()
	if !lock.held() {
		return ErrBusy
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("interfaces: %w", err)
	}
	err = nil
	for _, l := range links {
		if e := bpf.RemoveStaleObserver(l.Attrs().Index); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", l.Attrs().Name, e))
		}
	}
	return err
}

// run is one run, by target.
type run struct {
	targets []target
	obs     *bpf.Observer
	failed  []error
	before  []netlink.LinkStatistics
}

// attach begins to count. Where it cannot be done the others go on, as long as there is one.
func (r *run) attach(tcxOnly bool) error {
	counting := 0
	for i := range r.targets {
		t := &r.targets[i]
		if l, err := netlink.LinkByIndex(t.index); err == nil {
			r.before[i] = statistics(l)
		}
		_, err := r.obs.Attach(t.index, t.side(), tcxOnly)
		switch {
		case errors.Is(err, bpf.ErrNoTCX):
			return fmt.Errorf("%w: wait for it to end: before Linux 6.6 there can be one at a time", ErrBusy)
		case err != nil:
			r.failed[i] = fmt.Errorf("%s: %w", t.name, err)
		default:
			counting++
		}
	}
	if counting == 0 {
		return r.failed[0]
	}
	return nil
}

// finish reads the counters and takes the programs off.
func (r *run) finish(took time.Duration) (*Report, error) {
	h, err := netdev.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	off, err := groOff(h, r.targets)
	if err != nil {
		return nil, err
	}
	rep := &Report{Schema: Schema, Seconds: took.Seconds(), Interfaces: []Interface{}}
	samples := make([]Sample, len(r.targets))
	for i := range r.targets {
		t := &r.targets[i]
		samples[i] = Sample{Name: t.name, Kind: t.kind, Bridge: t.bridge, Seconds: took.Seconds(), NoVnetHdr: t.noVnetHdr}
		if r.failed[i] != nil {
			continue
		}
		if samples[i].Counts, err = r.obs.Counts(t.index); err != nil {
			return nil, err
		}
	}
	if err := r.obs.Detach(); err != nil {
		return nil, err
	}
	for i := range samples {
		if r.failed[i] != nil {
			rep.Interfaces = append(rep.Interfaces, Interface{Name: samples[i].Name, Kind: samples[i].Kind, Bulk: []Size{}, Error: r.failed[i].Error()})
			continue
		}
		samples[i].GROOff = off[samples[i].Bridge]
		if samples[i].Kind == Uplink {
			samples[i].GROOff = off[samples[i].Name]
		}
		r.look(h, i, &samples[i])
		rep.Interfaces = append(rep.Interfaces, Judge(samples[i]))
	}
	return rep, nil
}

// look adds what is true of the interface now. Of one that has gone meanwhile only the counts are known.
func (r *run) look(h *netdev.Handle, i int, s *Sample) {
	t := &r.targets[i]
	s.Takes = Takes{IPv4: true, IPv6: true}
	l, err := netlink.LinkByIndex(t.index)
	if t.kind != Tap || err != nil {
		return
	}
	now := statistics(l)
	s.DeviceBytes, s.Dropped = now.TxBytes-r.before[i].TxBytes, now.TxDropped-r.before[i].TxDropped
	s.NoReader = l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0
	s.Served = bpf.TapCounted(t.index)
	if t.noVnetHdr {
		s.Takes = Takes{}
	} else if f, err := h.InspectTap(l.Attrs().Name); err == nil {
		s.Takes = Takes{IPv4: f.Offloads.TSO4, IPv6: f.Offloads.TSO6}
	}
}

func statistics(l netlink.Link) netlink.LinkStatistics {
	if s := l.Attrs().Statistics; s != nil {
		return *s
	}
	return netlink.LinkStatistics{}
}

// lock is held by one run of a network namespace, which may then take filters for those of a killed one. It is a name of an abstract Unix
// socket: those are a namespace's own, and gone with their process.
type lock struct{ fd int }

func takeLock() (lock, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return lock{-1}, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@rscctl-observe"})
	if err == nil {
		return lock{fd}, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return lock{-1}, nil
	}
	return lock{-1}, os.NewSyscallError("bind", err)
}

func (l lock) held() bool { return l.fd >= 0 }

func (l lock) release() {
	if l.held() {
		unix.Close(l.fd)
	}
}
