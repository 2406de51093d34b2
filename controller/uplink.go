package controller

import (
	"errors"
	"fmt"
	"github.com/cilium/ebpf"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/vhost"
)

// Sizes of one NIC queue. The UMEM holds the frames of the fill ring and the RX ring, what the flow table holds, what
// waits for guests, and the TX ring; chunks are used last in, first out, so that only the busy part stays in cache.
const (
	fillRing       = 2048
	rxRing         = 2048
	txRingSize     = 1024
	completionRing = 1024
	macLen         = 6
	maxPorts       = datapath.MaxPorts // VMs of one interface
)

// uplink is one interface in use: its XDP program, a socket and a worker per queue, and the VMs on it.
type uplink struct {
	tag      string // see survivor
	name     string
	facts    *netdev.Facts
	chunk    int
	rings    ringSizes
	slots    int
	prog     *bpf.Program
	queues   []*queue
	mcast    *netdev.McastSocket
	log      *slog.Logger
	vms      map[string]*attachment // by VM name; guarded by the controller's lock
	byIdx    [maxPorts]*attachment
	taken    [maxPorts]uint32 // how many VMs have had each index
	flows    *bpf.Flows
	native   bool            // XDP runs in the driver
	steering map[uint32]bool // by port index: XDP sends frames of the VM to us
	changes  []state.Change  // what was changed on the host, in order
	warnings []string
	tune     tuning
	limit    vhost.LogLimit // of lines that the other end of the link can provoke

	senders     string    // what is wrong with the frames to come, "" for nothing
	sendersSeen time.Time // when that was looked at
}

// queue is one NIC queue: its socket, and the worker that serves it.
type queue struct {
	*datapath.Worker
	id        int
	sock      *xsk.Socket
	adoptable bool        // another process may go on with sock
	shares    *bpf.Shares // of the socket's RX ring
	wakeFD    int
	cpus      []int // of place
	place     *placement
	seen      uint64     // the worker's activity at the last look
	before    *api.Queue // counted by a process before this one; nil: by none
	said      bpf.Hangs  // what the log has said
	saidAt    time.Time
}

// close ends the worker and then closes what it was given. What a worker that does not stop still uses stays open, and mapped.
func (q *queue) close() error {
	if q.Worker != nil {
		if err := q.Stop(); err != nil {
			return err
		}
	}
	q.place.give(q.cpus)
	q.cpus = nil
	if q.wakeFD >= 0 {
		_ = unix.Close(q.wakeFD)
	}
	return errors.Join(q.shares.Close(), q.sock.Close())
}

// chunkFor returns the UMEM chunk size for an interface's MTU.
func chunkFor(f *netdev.Facts) (int, error) {
	grain := xsk.Grain(f.Driver)
	if chunk := xsk.ChunkFor(f.MTU, grain); chunk != 0 {
		return chunk, nil
	}
	most := xsk.MaxMTU(xsk.LargeChunk, grain)
	return 0, fmt.Errorf("%w: %d, a UMEM chunk of %d bytes holds at most %d: lower the interface's MTU ('ip link set %s mtu %d')", ErrMTU, f.MTU, xsk.LargeChunk, most, f.Name, most)
}

// inspectUplink looks at an interface and tells whether it can be an uplink for VMs of a VLAN. It changes nothing.
func inspectUplink(name string, vlan uint16) (*netdev.Facts, int, error) {
	f, err := netdev.Inspect(name)
	if errors.Is(err, netdev.ErrNoDevice) {
		err = fmt.Errorf("%w: %s'ip link' lists those of this network namespace", err, likeLink(name, err))
	}
	if err != nil {
		return nil, 0, fmt.Errorf("attach: %w", err)
	}
	if err := netdev.CheckUplink(name, vlan); err != nil {
		return nil, 0, fmt.Errorf("attach: %w", err)
	}
	chunk, err := chunkFor(f)
	if err != nil {
		return nil, 0, fmt.Errorf("attach: interface %s: %w", name, err)
	}
	if f.XDP.Attached {
		return nil, 0, fmt.Errorf("attach: interface %s: %w", name, foreignXDP(f))
	}
	return f, chunk, nil
}

// foreignXDP says who holds the interface: another controller, or a program that is not ours.
func foreignXDP(f *netdev.Facts) error {
	name := bpf.NameOf(ebpf.ProgramID(f.XDP.ProgID))
	if name == bpf.ProgramName {
		return fmt.Errorf("%w (XDP program %d): detach it there first", ErrHeld, f.XDP.ProgID)
	}
	return fmt.Errorf("%w (program %d %q): once you know whose it is, remove it with '%s', or choose another interface", bpf.ErrForeignXDP, f.XDP.ProgID, name, bpf.RemoveXDP(ebpf.ProgramID(f.XDP.ProgID), f.XDP.Off(f.Name)))
}

// openUplink loads and attaches the XDP program and starts the workers. On failure nothing is left behind.
func openUplink(f *netdev.Facts, chunk int, sizes Sizes, flows *bpf.Flows, tune tuning, trouble func(), log *slog.Logger) (u *uplink, err error) {
	u = &uplink{name: f.Name, facts: f, chunk: chunk, rings: sizes.rings(f.RxQueues, chunk, memory()), slots: sizes.slots(), tune: tune, log: log.With("iface", f.Name), vms: map[string]*attachment{}, flows: flows, steering: map[uint32]bool{}}
	defer func() {
		if err != nil {
			_ = u.close()
			u, err = nil, fmt.Errorf("interface %s: %w", f.Name, err)
		}
	}()
	if err := u.loadProgram(); err != nil {
		return u, err
	}
	if u.mcast, err = netdev.OpenMulticast(f.Index); err != nil {
		return u, err
	}
	for id := range f.RxQueues {
		if err := u.openQueue(id, trouble); err != nil {
			return u, err
		}
	}
	return u, nil
}

// openQueue opens one NIC queue and starts its worker. What it opened is in u.queues, also when it fails.
func (u *uplink) openQueue(id int, trouble func()) error {
	s, err := xsk.Open(u.queueConfig(id))
	if err != nil {
		return err
	}
	return u.startQueue(id, s, nil, nil, trouble)
}

// queueConfig is what the socket of one NIC queue is opened with.
func (u *uplink) queueConfig(id int) xsk.Config {
	cfg := queueConfig(u.facts.Index, id, u.chunk, u.rings, u.native)
	cfg.BusyPoll = u.tune.busyPoll > 0
	return cfg
}

func queueConfig(ifindex, id, chunk int, r ringSizes, native bool) xsk.Config {
	return xsk.Config{
		Ifindex: ifindex, Queue: id, Chunks: r.Chunks, ChunkSize: chunk, RxSize: r.Rx, TxSize: r.Tx, FillSize: r.Fill, CompSize: r.Completion,
		NeedWakeup: true, Native: native,
	}
}

// startQueue starts the worker of one NIC queue on its socket, which is the queue's from here on. before is what a process before
// this one has counted; then the worker takes nothing until Resume. prepared may be nil.
func (u *uplink) startQueue(id int, s *xsk.Socket, before *api.Queue, prepared *datapath.Worker, trouble func()) (err error) {
	q := &queue{id: id, sock: s, adoptable: s.Adoptable(), wakeFD: -1, before: before, place: u.tune.place, cpus: u.tune.place.take()}
	u.queues = append(u.queues, q)
	if q.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("worker %d: eventfd: %w", id, err)
	}
	if q.shares, err = u.prog.Shares(id, u.rings.Rx, u.rings.Fill); err != nil {
		return err
	}
	cfg := datapath.Config{
		ID: id, MTU: u.facts.MTU, NIC: s, Shares: q.shares, WakeFD: q.wakeFD, Chunks: u.rings.Chunks, Slots: u.slots, Log: u.log, Trouble: trouble,
		Suspended: before != nil, Prepared: prepared, CPUs: q.cpus, BusyPoll: int64(u.tune.busyPoll),
	}
	copy(cfg.Own[:], u.facts.MAC)
	if id == 0 {
		cfg.Multicast = u.mcast
	}
	if q.Worker, err = datapath.New(cfg); err != nil {
		return err
	}
	if err := u.prog.SetSocket(id, s.FD()); err != nil {
		return err
	}
	q.Start()
	return nil
}

// loadProgram tries native XDP, then generic, and keeps what generic mode costs as a warning.
func (u *uplink) loadProgram() error {
	var first error
	for _, native := range []bool{true, false} {
		p, err := bpf.Load(bpf.LoadOptions{Ifindex: u.facts.Index, Queues: u.facts.RxQueues, Native: native})
		if err != nil {
			return err
		}
		if err = p.Attach(native); err == nil {
			u.prog, u.native = p, native
			if !native {
				u.warnings = append(u.warnings, fmt.Sprintf("generic XDP: the driver of %s has no native mode or refused it%s: every frame of it costs more, and the kernel's own GRO on it is off", u.name, reason(first)))
			}
			return nil
		}
		p.Close()
		if !errors.Is(err, bpf.ErrUnsupported) {
			return err
		}
		first = err
	}
	return first
}

// reason is what the kernel answered, without the words of each layer that handed it on.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return " (" + errno.Error() + ")"
	}
	return ""
}

// close stops the workers and takes everything off the interface. Safe on a half-built uplink.
func (u *uplink) close() error {
	var errs []error
	if u.prog != nil {
		errs = append(errs, u.prog.Detach())
	}
	stopped := true
	for _, q := range u.queues {
		err := q.close()
		stopped = stopped && !errors.Is(err, datapath.ErrStuck)
		errs = append(errs, err)
	}
	if u.mcast != nil && stopped { // a worker that runs on may read it
		errs = append(errs, u.mcast.Close())
	}
	if u.prog != nil {
		errs = append(errs, u.prog.Close())
	}
	return errors.Join(errs...)
}

// each turns to every queue, and goes on when one fails.
func (u *uplink) each(fn func(q *queue) error) error {
	var errs []error
	for _, q := range u.queues {
		errs = append(errs, fn(q))
	}
	return errors.Join(errs...)
}

// freeIndex returns an unused port index, and how many VMs had it before.
func (u *uplink) freeIndex() (index, generation uint32, err error) {
	for i, p := range u.byIdx {
		if p == nil {
			u.taken[i]++
			return uint32(i), u.taken[i] - 1, nil
		}
	}
	return 0, 0, fmt.Errorf("interface %s: %w: it has %d, the most that an interface can have: detach one, or attach this one to another interface", u.name, ErrLimit, maxPorts)
}

// setSteering notes whether XDP sends frames of a VM to us. A generic program costs every frame of the interface the kernel's
// GRO, also when it passes them all (measured: frames of 47,000 bytes became 1,514), so it comes off while no VM wants it.
func (u *uplink) setSteering(idx uint32, on bool) error {
	if on {
		u.steering[idx] = true
	} else {
		delete(u.steering, idx)
	}
	switch attached := u.prog.Mode() != ""; {
	case u.native:
		return nil
	case len(u.steering) > 0 && !attached:
		return u.prog.Attach(false)
	case len(u.steering) == 0 && attached:
		return u.prog.Detach()
	}
	return nil
}
