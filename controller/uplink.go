package controller

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
)

// Sizes of one NIC queue. The UMEM holds the frames of the fill ring and the RX ring, what the flow table holds, what
// waits for guests, and the TX ring; chunks are used last in, first out, so that only the busy part stays in cache.
//
// The longer the RX ring, the more connections find room in it for what they have on their way at once. One that is dropped into goes on
// with less on its way, and so with smaller superframes.
//
// The fill ring is kept full all the same, and so walks through all of its chunks. Fewer in it would stay in the cache, but a worker that waits for its processor
// finds hundreds of frames, at times more than a thousand, with no sign in the turns before: what was not in the ring by then is lost. And XDP takes a worker
// for hung when half of the ring waits for it (bpf/hang.h), which it would never see in a shorter one.
const (
	leastRing      = 2048 // RX and fill ring
	mostRing       = datapath.MaxRing
	ringShare      = 4 // part of the chunks that each of the two may have, if that is more than leastRing
	txRingSize     = 1024
	completionRing = 1024
	macLen         = 6
	maxPorts       = datapath.MaxPorts // VMs of one interface
)

// uplink is one interface in use: its devices with their XDP programs, a socket and a worker per queue of them, and the VMs on it.
type uplink struct {
	tag      string // see survivor
	name     string
	facts    *netdev.Facts
	chunk    int
	rings    ringSizes
	slots    int
	bond     *netdev.Bond // as it was at the last look; nil: the interface is none
	devs     []*device    // by whose queues its frames come in
	prog     program      // of the first device; what it knows of VMs, flows and outcomes is the others' too
	foreign  *foreign     // the same, if it is somebody else's
	queues   []*queue
	mcast    *netdev.McastSocket
	log      *slog.Logger
	vms      map[string]*attachment // by VM name; guarded by the controller's lock
	byIdx    [maxPorts]*attachment
	taken    [maxPorts]uint32 // how many VMs have had each index
	flows    *bpf.Flows
	steering map[uint32]bool // by port index: XDP sends frames of the VM to us
	host     *hostSide       // nil: no VM has the host as its neighbour, or none can
	changes  []state.Change  // what was changed on the host, in order
	warnings []string
	tune     tuning
	unserved map[int]unserved // by ifindex: members of the bond by which no VM gets frames
	announce int              // looks at which it is still to be told where the VMs are
	began    time.Time        // the workers' clock, which VMs' rates go by, runs from then on
	limit    vhost.LogLimit   // of lines that the other end of the link can provoke

	hostTrouble string    // why the host is nobody's neighbour, "" where it is, or nobody wants it
	senders     string    // what is wrong with the frames to come, "" for nothing
	sendersSeen time.Time // when that was looked at
}

// queue is one NIC queue: its socket, and the worker that serves it.
type queue struct {
	*datapath.Worker
	id        int // of the worker, no other's of the uplink
	dev       *device
	nic       int // the queue's number there
	sock      *xsk.Socket
	out       *tap.Packet // of a bond: by which frames leave; otherwise nil
	adoptable bool        // another process may go on with sock
	shares    *bpf.Shares // of the socket's RX ring
	wire      *tap.Uplink // by which guests' TSO frames leave
	host      *tap.Uplink // by which frames reach the host; nil: it is no neighbour
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
	var err error
	if q.out != nil {
		err = q.out.Close()
	}
	if q.wire != nil {
		err = errors.Join(err, q.wire.Close())
	}
	return errors.Join(err, q.closeHost(), q.shares.Close(), q.sock.Close())
}

// clock is the workers', ns.
func (u *uplink) clock() int64 { return int64(time.Since(u.began)) }

// openUplink loads and attaches the XDP program, or takes part in somebody else's, and starts the workers. On failure nothing is left behind.
func openUplink(s *site, sizes Sizes, flows *bpf.Flows, tune tuning, trouble func(), log *slog.Logger) (u *uplink, err error) {
	f := s.facts
	u = &uplink{name: f.Name, facts: f, bond: s.bond, chunk: s.room.chunk, rings: sizes.rings(s.queues(), s.room, memory()), slots: sizes.slots(), tune: tune, log: log.With("iface", f.Name), vms: map[string]*attachment{}, flows: flows, steering: map[uint32]bool{}, began: time.Now()}
	defer func() {
		if err != nil {
			_ = u.close()
			u, err = nil, fmt.Errorf("interface %s: %w", f.Name, err)
		}
	}()
	for _, f := range s.devs {
		open := func() (*device, error) { return u.openDevice(f) }
		if s.xskMap != "" {
			open = func() (*device, error) { return u.openForeign(s) }
		}
		d, err := open()
		if err != nil {
			return u, u.ofMember(f.Name, err)
		}
		u.addDevice(d)
		if d.warning != "" {
			u.warnings = append(u.warnings, d.warning)
		}
	}
	if u.mcast, err = netdev.OpenMulticast(f.Index); err != nil {
		return u, err
	}
	for _, d := range u.devs {
		for _, at := range u.placesOn(d) {
			q, err := u.openQueue(at, false, trouble)
			if err != nil {
				return u, u.ofMember(d.facts.Name, err)
			}
			u.queues = append(u.queues, q)
		}
	}
	return u, nil
}

// queuePlace is a NIC queue, and the number that its worker has.
type queuePlace struct {
	id  int
	dev *device
	nic int
}

// placesOn are the queues of a device that get a socket. Those of somebody else's program have the numbers that they have there.
func (u *uplink) placesOn(d *device) (at []queuePlace) {
	if u.foreign != nil {
		for _, nic := range u.foreign.queues {
			at = append(at, queuePlace{int(nic), d, int(nic)})
		}
		return at
	}
	first := u.freeQueue()
	for nic := range d.facts.RxQueues {
		at = append(at, queuePlace{first + nic, d, nic})
	}
	return at
}

// openQueue opens one NIC queue and starts its worker. suspended: the worker takes nothing until Resume, which starts it.
func (u *uplink) openQueue(at queuePlace, suspended bool, trouble func()) (*queue, error) {
	s, err := xsk.Open(u.queueConfig(at))
	if err != nil {
		return nil, u.lacksJumbo(at.dev.facts, err)
	}
	wire, err := tap.OpenUplink(u.facts.Index)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	q, err := u.makeQueue(at, s, wire, suspended, trouble)
	if err != nil {
		return nil, err
	}
	if err := u.beginQueue(q); err != nil {
		return nil, errors.Join(err, q.close())
	}
	if !suspended {
		q.Start()
	}
	return q, nil
}

// queueConfig is what the socket of one NIC queue is opened with.
func (u *uplink) queueConfig(at queuePlace) xsk.Config {
	cfg := queueConfig(at.dev.facts.Index, at.nic, u.chunk, u.rings, at.dev.native)
	cfg.BusyPoll = u.tune.busyPoll > 0
	return cfg
}

func queueConfig(ifindex, id, chunk int, r ringSizes, native bool) xsk.Config {
	return xsk.Config{
		Ifindex: ifindex, Queue: id, Chunks: r.Chunks, ChunkSize: chunk, RxSize: r.Rx, TxSize: r.Tx, FillSize: r.Fill, CompSize: r.Completion,
		Frames: r.Frames, FrameSize: r.FrameSize, NeedWakeup: true, Native: native,
	}
}

// makeQueue makes a NIC queue and its worker over its sockets, which are the queue's from here on. It touches nothing of them and of the
// program. suspended: the worker takes nothing until Resume, which starts it. On failure nothing is left behind.
func (u *uplink) makeQueue(at queuePlace, s *xsk.Socket, wire *tap.Uplink, suspended bool, trouble func()) (_ *queue, err error) {
	q := &queue{id: at.id, dev: at.dev, nic: at.nic, sock: s, wire: wire, wakeFD: -1, place: u.tune.place, cpus: u.tune.place.take()}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.close())
		}
	}()
	if q.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("worker %d: eventfd: %w", at.id, err)
	}
	if err := wire.SetMark(meta.HostMark); err != nil { // what VMs send is not turned back to them
		return nil, err
	}
	rx, fill := u.rings.inFrames(u.chunk)
	if q.shares, err = at.dev.prog.SharesAhead(at.nic, rx, fill); err != nil {
		return nil, err
	}
	nic, err := u.wayOut(q)
	if err != nil {
		return nil, err
	}
	cfg := datapath.Config{
		ID: at.id, MTU: u.facts.MTU, NIC: nic, Wire: wire, WakeFD: q.wakeFD, Chunks: u.rings.Chunks, Slots: u.slots, Log: u.log, Trouble: trouble,
		Foreign: u.foreign != nil, Suspended: suspended, CPUs: q.cpus, BusyPoll: int64(u.tune.busyPoll), Clock: u.clock,
	}
	copy(cfg.Own[:], u.facts.MAC)
	if q.shares != nil {
		cfg.Shares = q.shares
	}
	if u.rings.Frames > 0 { // what holds the frames is less than the chunks
		cfg.Large, cfg.Chunks = s, u.rings.Frames
	}
	if len(u.queues) == 0 {
		cfg.Multicast = u.mcast
	}
	if q.Worker, err = datapath.New(cfg); err != nil {
		return nil, err
	}
	return q, nil
}

// beginQueue puts a queue's sockets in their place. Who had the queue before must have stopped.
func (u *uplink) beginQueue(q *queue) error {
	if err := q.sock.Begin(); err != nil {
		return err
	}
	q.adoptable = q.sock.Adoptable()
	q.shares.Begin()
	err := q.wire.Begin()
	if err == nil {
		q.wire.SetDatagrams(u.facts.USO)
		err = q.wire.SetDirect(u.facts.TSO)
	}
	if err != nil {
		return fmt.Errorf("worker %d: %w", q.id, err)
	}
	return q.dev.prog.SetSocket(q.nic, q.sock.FD())
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
	errs = append(errs, u.eachDevice(func(d *device) error { return d.prog.Detach() }))
	stopped := true
	for _, q := range u.queues {
		err := q.close()
		stopped = stopped && !errors.Is(err, datapath.ErrStuck)
		errs = append(errs, err)
	}
	if u.mcast != nil && stopped { // a worker that runs on may read it
		errs = append(errs, u.mcast.Close())
	}
	if u.host != nil && !stopped {
		errs = append(errs, u.host.prog.Close())
	} else {
		errs = append(errs, u.host.close())
	}
	errs = append(errs, u.eachDevice(func(d *device) error { return d.prog.Close() }))
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
	if u.foreign != nil {
		return nil
	}
	return u.eachDevice(func(d *device) error {
		switch attached := d.prog.Mode() != ""; {
		case d.native:
			return nil
		case len(u.steering) > 0 && !attached:
			return d.prog.Attach(false)
		case len(u.steering) == 0 && attached:
			return d.prog.Detach()
		}
		return nil
	})
}
