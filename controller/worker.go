package controller

import (
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// Bounds of one worker.
const (
	burstFrames   = 64                     // RX descriptors taken at once
	txBudget      = 64                     // chains taken from one TX virtqueue at once
	mcastBudget   = 32                     // multicast frames taken at once
	lookEvery     = 16                     // busy steps between two looks at the other descriptors
	blockedRetry  = time.Millisecond       // a blocked port is looked at this often, should a kick go to another worker
	txRetry       = 100 * time.Microsecond // frames the kernel had no room for are offered again this often
	workerTimeout = 2 * time.Second        // a message to a worker that takes longer is an error
	errorBackoff  = 100 * time.Millisecond // sleep while the AF_XDP socket reports an error (interface down)
	maxPorts      = 256                    // VMs of one interface
)

// portAddr is where a frame is for: what tells the VMs of one interface apart.
type portAddr struct {
	vlan uint16 // 0: untagged
	mac  [6]byte
}

// worker serves one NIC queue. All its fields but cmds, dead and wakeFD belong to its own goroutine.
type worker struct {
	id    int
	mtu   int
	log   *slog.Logger
	xs    *xsk.Socket
	mcast *netdev.McastSocket // worker 0 only, otherwise nil
	table *flowtable.Table

	ports  []*workerPort // by port index, nil where there is none
	list   []*workerPort // the same without the gaps
	byAddr map[portAddr]*workerPort
	tx     []*txRing // the TX virtqueues this worker reads

	start   time.Time // origin of now
	now     int64     // ns since start, read once per burst
	descs   [burstFrames]xsk.Desc
	pkt     flowtable.Packet
	seg     flowtable.Segmenter // superframes cut again for a guest
	txSeg   flowtable.Segmenter // a guest's own TSO frames
	txFrag  [1][]byte
	scratch []byte // one piece of a superframe cut again
	mbuf    []byte // one multicast frame

	fds       []unix.PollFd
	fdsStale  bool
	txStalled bool // a guest's frame waits for TX room
	blocked   int  // ports whose guest has no buffers
	xskBroken bool

	cnt  workerCounters
	free func(ref uint64) // xs.Free, bound once

	trouble chan<- struct{} // asks the control side to look at the feeds; capacity 1

	cmds     chan message
	dead     chan struct{}
	wakeFD   int
	stopping bool
}

type workerCounters struct {
	rxFrames, txFrames, txRingFull uint64
	withMeta                       uint64 // frames whose descriptor XDP wrote
}

type message struct {
	fn   func()
	done chan struct{}
}

func newWorker(id, mtu int, xs *xsk.Socket, mcast *netdev.McastSocket, trouble chan<- struct{}, log *slog.Logger) (*worker, error) {
	w := &worker{
		id: id, mtu: mtu, log: log, xs: xs, mcast: mcast,
		ports: make([]*workerPort, maxPorts), byAddr: map[portAddr]*workerPort{},
		free: xs.Free, start: time.Now(), scratch: make([]byte, mtu+64), mbuf: make([]byte, 1<<16),
		trouble: trouble, cmds: make(chan message, 16), dead: make(chan struct{}), fdsStale: true,
	}
	t, err := flowtable.New(flowtable.Config{Slots: tableSlots, MaxHeld: maxHeldChunks, Ports: maxPorts}, w)
	if err != nil {
		return nil, fmt.Errorf("worker %d: %w", id, err)
	}
	w.table = t
	w.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("worker %d: eventfd: %w", id, err)
	}
	return w, nil
}

// do runs fn on the worker between two bursts and waits for it, at most workerTimeout. Safe from any goroutine but the
// worker's own.
func (w *worker) do(fn func()) error {
	c := message{fn: fn, done: make(chan struct{})}
	timeout := time.NewTimer(workerTimeout)
	defer timeout.Stop()
	select {
	case w.cmds <- c:
	case <-w.dead:
		return fmt.Errorf("worker %d: %w", w.id, ErrWorker)
	case <-timeout.C:
		return fmt.Errorf("worker %d: %w", w.id, ErrWorker)
	}
	var one = [8]byte{1}
	_, _ = unix.Write(w.wakeFD, one[:]) // full counter: it is awake anyway
	select {
	case <-c.done:
		return nil
	case <-w.dead:
		return fmt.Errorf("worker %d: %w", w.id, ErrWorker)
	case <-timeout.C:
		return fmt.Errorf("worker %d: %w", w.id, ErrWorker)
	}
}

// stop ends the worker: what it holds is delivered or counted, its socket closed by the caller afterwards.
func (w *worker) stop() {
	_ = w.do(func() { w.stopping = true }) // a worker that is gone is stopped
	select {
	case <-w.dead:
		unix.Close(w.wakeFD)
	case <-time.After(workerTimeout): // the eventfd stays open: closing it under a live worker would hand its number away
	}
}

// run is the worker's loop. It returns when stopped.
func (w *worker) run() {
	// The thread is never unlocked: it ends with the goroutine, and with it the timer slack set here.
	runtime.LockOSThread()
	defer close(w.dead)
	// The default slack of 50 us would double a hold of 50 us.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		w.log.Warn("worker: timer slack", "worker", w.id, "err", err)
	}
	w.xs.Refill()
	for busy := 0; !w.stopping; {
		if !w.step() {
			if !w.stopping { // the message that stops has taken its wake-up with it
				w.wait()
			}
			busy = 0
		} else if busy++; busy%lookEvery == 0 {
			w.look()
		}
	}
	w.now = w.clock()
	w.table.Close(flowtable.ReasonStop, w.now)
	w.flush()
	for _, p := range w.list {
		w.dropQueued(p, flowtable.ReasonPortDown)
	}
}

func (w *worker) clock() int64 { return int64(time.Since(w.start)) }

// step moves one burst in each direction. It reports whether there was anything to do.
func (w *worker) step() bool {
	for len(w.cmds) > 0 {
		c := <-w.cmds
		w.now = w.clock()
		c.fn()
		close(c.done)
	}
	w.now = w.clock()
	w.reapTaps()
	n := w.receive()
	w.table.EndBurst(w.now)
	w.flush()
	n += w.transmit()
	if w.xs.TxPending() > 0 { // also what the kernel had no room for the last time
		if err := w.xs.Flush(); err != nil {
			w.xskBroken = true
		}
	}
	w.xs.Refill()
	return n > 0
}

// receive takes one burst from the RX ring into the flow table.
func (w *worker) receive() int {
	n := w.xs.Recv(w.descs[:])
	for i := range w.descs[:n] {
		d := w.descs[i]
		frame := w.xs.Frame(d)
		p := w.classify(frame, w.xs.Meta(d))
		if p == nil { // detached between XDP's look and ours
			w.xs.Free(d.Addr)
			continue
		}
		w.accept(p, frame, d.Addr)
	}
	w.cnt.rxFrames += uint64(n)
	return n
}

// classify finds the VM a frame is for and fills w.pkt.Info: from the descriptor that XDP left in front of the frame, or
// where there is none by parsing here. nil: no VM has this address (any more).
func (w *worker) classify(frame, before []byte) *workerPort {
	var m bpf.Meta
	if bpf.ParseMeta(before, len(frame), &m) && m.Port < maxPorts {
		w.cnt.withMeta++
		w.pkt.Info = infoOf(&m)
		return w.ports[m.Port]
	}
	packet.Parse(frame, &w.pkt.Info)
	if len(frame) < ethHeader {
		return nil
	}
	addr := portAddr{mac: [macLen]byte(frame)}
	if w.pkt.Info.Tagged {
		addr.vlan = w.pkt.Info.TCI & 0xfff
	}
	return w.byAddr[addr]
}

// infoOf is what XDP found out about a frame, as the parser here would have said it.
func infoOf(m *bpf.Meta) packet.Info {
	i := packet.Info{
		L3: uint32(m.L3), L4: uint32(m.L4), Payload: uint32(m.Payload), PayloadLen: uint32(m.PayloadLen),
		Family: m.Family, TCPFlags: m.TCPFlags, Verdict: packet.Verdict(m.Verdict),
		Tagged: m.Flags&bpf.MetaTagged != 0, Keyed: m.Flags&bpf.MetaKeyed != 0,
	}
	if i.Tagged { // an accelerated tag is not in the frame
		i.TCI = m.TCI
	}
	return i
}

// accept gives one frame in a chunk to the flow table as a packet for p. w.pkt.Info describes it.
func (w *worker) accept(p *workerPort, frame []byte, ref uint64) {
	if !p.running {
		p.out.ledger.Refuse(flowtable.ReasonPortDown, len(frame))
		w.xs.Free(ref)
		return
	}
	if p.tap != nil {
		if p.late {
			p.cnt.late++
		}
		p.tap.senders.note(frame)
	}
	if w.pkt.Info.Tagged && p.addr.vlan == w.pkt.Info.TCI&0xfff {
		frame = stripTag(frame, &w.pkt.Info)
	}
	w.pkt.Data, w.pkt.Ref, w.pkt.Port = frame, ref, p.idx
	w.table.Add(&w.pkt, w.now)
}

// stripTag removes the 802.1Q tag of an access port's frame by moving the addresses over it, in the frame's own chunk.
func stripTag(frame []byte, i *packet.Info) []byte {
	copy(frame[4:16], frame[:12])
	i.Tagged, i.TCI = false, 0
	for _, off := range []*uint32{&i.L3, &i.L4, &i.Payload} {
		if *off >= 4 {
			*off -= 4
		}
	}
	return frame[4:]
}

// receiveMulticast takes multicast and broadcast frames, which XDP leaves to the host, for every VM of their VLAN.
func (w *worker) receiveMulticast() {
	w.now = w.clock()
	for range mcastBudget {
		frame, tci, tagged, err := w.mcast.Recv(w.mbuf)
		if err != nil {
			return
		}
		vlan := uint16(0)
		if tagged {
			vlan = tci & 0xfff
		}
		w.copyToPorts(frame, vlan, nil)
	}
}

// copyToPorts gives an untagged frame to every running vhost-user port of a VLAN but one, each a chunk of its own. A VM on
// its own tap gets it from the kernel.
func (w *worker) copyToPorts(frame []byte, vlan uint16, but *workerPort) {
	for _, p := range w.list {
		if p != but && p.addr.vlan == vlan && p.running && p.tap == nil {
			w.copyToPort(frame, p)
		}
	}
}

func (w *worker) copyToPort(frame []byte, p *workerPort) {
	buf, d, ok := w.xs.AllocTx()
	if !ok {
		p.out.ledger.Refuse(flowtable.ReasonGuestNoBuffers, len(frame))
		return
	}
	if len(frame) > len(buf) {
		p.out.ledger.Refuse(flowtable.ReasonBadLength, len(frame))
		w.xs.Free(d.Addr)
		return
	}
	n := copy(buf, frame)
	packet.Parse(buf[:n], &w.pkt.Info)
	w.accept(p, buf[:n], d.Addr)
}
