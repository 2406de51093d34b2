package datapath

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
)

// Bounds of one worker.
const (
	BurstFrames  = 64                     // RX descriptors taken at once
	MaxPorts     = meta.MaxPorts          // VMs of one interface
	MaxRing      = 8192                   // frames of an RX ring, and so what Drain takes; rings of jumbo frames have more entries, and no more frames
	txBudget     = 64                     // chains taken from one source at once
	groupBudget  = 32                     // group frames taken at once
	lookEvery    = 16                     // busy steps between two looks at the other descriptors
	hungryRetry  = time.Millisecond       // a guest without room that has no sign of it is looked at this often
	txRetry      = 100 * time.Microsecond // frames the kernel had no room for are offered again this often
	errorBackoff = 100 * time.Millisecond // sleep while the NIC reports an error (interface down)
)

// Config describes a Worker. The worker owns nothing of it: whoever made the descriptors closes them, after Stop.
type Config struct {
	ID        int       // the NIC queue's number
	MTU       int       // bytes behind the Ethernet header (and one tag) that the wire takes
	Own       [6]byte   // the interface's address, which is the host's
	NIC       NIC       //
	Large     Large     // nil: all frames fit the NIC's chunks
	Shares    Shares    // of the RX ring; nil: none
	Wire      Wire      // nil: all that guests send is cut and summed here
	Multicast Multicast // nil on all workers of an interface but one
	WakeFD    int       // an eventfd, non-blocking, that messages make readable
	Chunks    int       // in the NIC's UMEM: the bounds of what may wait are shares of it
	Slots     int       // of the flow table
	Log       *slog.Logger
	Clock     func() int64 // ns, never backwards; nil: the time since New
	Foreign   bool         // the XDP program is not ours: frames have no metadata, and may be for nobody
	Suspended bool         // it begins as Suspend leaves it, before Start too: it does what it is told, and Resume starts it
	CPUs      []int        // that the thread may run on; none: any
	BusyPoll  int64        // ns that it polls the NIC on after it had something to do, before it sleeps; 0: it sleeps at once
	// Trouble is called on the worker's goroutine when the control side should look: a guest is finished, or the worker is.
	// It must not wait.
	Trouble func()
}

// Worker serves one NIC queue. Its exported methods are safe from any goroutine but its own; all fields but those behind
// "shared" belong to its own goroutine.
type Worker struct {
	cfg   Config
	nic   NIC
	group Multicast
	log   *slog.Logger
	table *flowtable.Table

	ports  []*port // by port index, nil where there is none
	list   []*port // the same without the gaps
	byAddr map[Addr]*port
	dirty  []*port // frames wait for their guests, or their guests have chunks to give back
	egress []*egress

	turn     uint64 // passes of step
	round    round
	lent     lending
	txLeft   int    // chunks that the guest's frame in hand still needs: copies for others leave them alone
	txNeed   int    // TX slots that the frame wants which found too few
	sent     uint64 // frames queued for the wire by AF_XDP, those of a process before this one included
	batch    wireBatch
	wireFull uint64 // the turn in which Wire had no room
	emptyAt  uint64 // the turn in which Wire was asked
	empty    bool   // what it said
	owed     bool   // somebody could go on, and has used up its part of this turn

	seed   maphash.Seed
	judged bool // a guest was found to drop superframes, or is to be tried again

	wary   bool  // somebody has made the worker wait: see stall
	stepAt int64 // when the step began
	known  waits // when waits was last asked
	polls  int64 // times that the worker itself went to sleep, since then
	booked int64 // ns of sleep that are some VM's
	waits  func() waits

	clock   func() int64
	now     int64 // by clock, read once per burst
	descs   [BurstFrames]xsk.Desc
	chunks  xsk.Chunks // the NIC's
	memory  *byte      // what its descriptors count in; only the cache is asked for it
	pkt     flowtable.Packet
	cutter  flowtable.Segmenter // superframes that a guest does not take whole
	txCut   flowtable.Segmenter // a guest's own TSO frames
	txFrag  [1][]byte
	piece   Frame // of a superframe that was cut again
	pieces  [][]byte
	host    hostSide
	mender  mender
	staging staging
	lender  *port  // whose memory the frame lies in that is being put into another's
	cutAll  bool   // benchmarks only: no frame is handed over whole
	scratch []byte // their memory: a packet may be longer than the MTU, which can have changed
	mbuf    []byte // one group frame

	fds       []unix.PollFd
	fdsStale  bool
	txStalled bool         // a guest's frame waits for TX room
	txShort   bool         // a guest's frame waits for chunks, which the wire will not give back: it has none
	waiting   int          // ports for which frames wait: the guest has no room, or is in debt, or is paused
	longRings [][]outFrame // see lengthen
	signless  bool         // a hungry guest has no descriptor that would tell of room; arm's
	nicBroken bool
	polling   busyPolling
	groupTurn uint64 // the turn that groupLeft is of
	groupLeft int    // copies of group frames that somebody else's XDP program has brought
	torn      uint64 // frames that were not those that XDP had described
	cutUSO    int    // USO frames of so many datagrams and more are cut here, 0: none. See wire.go
	overtaken int    // of the frames that come next: they waited while the worker hung, and later ones went by the kernel

	cnt       QueueCounters
	suspended bool // it takes nothing from the NIC and from guests
	stopping  bool
	entering  entering // pkt, while somebody wants to know what becomes of it

	publishTx func() int // before of Source.Poll, bound once, so that polling allocates nothing

	// shared
	cmds      chan message
	dead      chan struct{}
	fault     error       // why run ended by itself; read after dead is closed
	starting  sync.Mutex  // what belongs to the goroutine, until there is one
	direct    atomic.Bool // Wire's
	datagrams atomic.Bool // the device takes UDP superframes, as Wire was told
	started   atomic.Bool
	silent    atomic.Bool // the last message was not answered in time
	activity  atomic.Uint64
}

// QueueCounters are a worker's own.
type QueueCounters struct {
	RxFrames   uint64 // taken from the NIC
	TxFrames   uint64 // queued for the wire
	TxSlots    uint64 // packets that guests' frames became, for the wire and for the VMs beside it
	TxKernel   uint64 // guests' frames that left by Wire
	TxRingFull uint64 // given up because there was no room after all
	WithMeta   uint64 // of RxFrames: their metadata was XDP's
	Unknown    uint64 // of RxFrames: for a VM that had gone meanwhile
	Nobody     uint64 // of RxFrames: for no VM, where the XDP program is not ours
	NoBuffer   uint64 // lost in front of RxFrames: all of Config.Large was in use
	Broken     uint64 // likewise: pieces of a frame were missing, or too many
	GroupLost  uint64 // group frames that the socket lost: the worker was too slow
	HostSlow   uint64 // frames of the host's that the socket lost: the worker was too slow, or nobody can use them
	HostLost   uint64 // frames between host and VMs that were lost on their way, or that nobody here can use
	GroupOdd   uint64 // group frames that nobody here can use: too long, with a foreign tag, with a broken checksum
}

// heldMost is how many chunks the flow table may have: a quarter, and of a larger UMEM half, once as many as usual are left for all else.
func heldMost(chunks int) int {
	const others = 16384
	return max(chunks/4, min(chunks/2, chunks-others))
}

// New returns a worker that does nothing until Start. It opens no descriptor.
func New(cfg Config) (*Worker, error) {
	w := &Worker{
		cfg: cfg, nic: cfg.NIC, group: cfg.Multicast, log: cfg.Log.With("worker", cfg.ID),
		ports: make([]*port, MaxPorts), byAddr: map[Addr]*port{}, dirty: make([]*port, 0, MaxPorts),
		turn: 1, suspended: cfg.Suspended, clock: cfg.Clock, scratch: make([]byte, 1<<16), pieces: make([][]byte, 1), mbuf: make([]byte, 1<<16),
		seed: maphash.MakeSeed(), cmds: make(chan message, 16), dead: make(chan struct{}), fdsStale: true, waits: threadWaits,
	}
	w.publishTx = w.beforeUsed
	var err error
	if w.table, err = flowtable.New(flowtable.Config{Slots: cfg.Slots, MaxHeld: heldMost(cfg.Chunks), Ports: MaxPorts}, w); err != nil {
		return nil, fmt.Errorf("worker %d: %w", cfg.ID, err)
	}
	if err := w.mender.init(cfg.Chunks / 4); err != nil {
		return nil, fmt.Errorf("worker %d: %w", cfg.ID, err)
	}
	if w.clock == nil {
		start := time.Now()
		w.clock = func() int64 { return int64(time.Since(start)) }
	}
	return w, nil
}

// Start starts the worker's goroutine, once.
func (w *Worker) Start() {
	w.starting.Lock()
	defer w.starting.Unlock()
	if w.started.Load() {
		return
	}
	w.begin()
	w.started.Store(true)
	go w.run()
}

// begin reads what of the NIC and of Wire was another's to change so far. What the guests sent by then may be on its way.
func (w *Worker) begin() {
	w.chunks = w.nic.Chunks()
	if m := w.chunks.Memory(); len(m) > 0 {
		w.memory = &m[0]
	}
	w.sent = uint64(w.nic.TxPending())
	for _, e := range w.egress {
		e.mark = w.sent
	}
	if w.cfg.Wire != nil {
		w.direct.Store(w.cfg.Wire.Direct())
	}
}

// run is the worker's goroutine.
func (w *Worker) run() {
	// The thread is never unlocked: it ends with the goroutine, and with it the timer slack set here.
	runtime.LockOSThread()
	defer w.ended()
	// The default slack of 50 us would double a hold of 50 us.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		w.log.Warn("worker: timer slack", "err", err)
	}
	w.bindThread()
	w.nic.Refill()
	for busy := 0; !w.stopping; {
		switch moved := w.step(); {
		case w.stopping: // the message that stops has taken its wake-up with it
		case !moved && w.suspended:
			w.rest()
			busy = 0
		case !moved && !w.busyPoll():
			w.wait()
			busy = 0
		default:
			if busy++; busy%lookEvery == 0 {
				w.look()
			}
		}
	}
	w.finish()
}

// finish delivers or counts all that the worker holds.
func (w *Worker) finish() {
	w.now = w.clock()
	w.table.Close(flowtable.ReasonStop, w.now)
	w.flush()
	w.closeGuests()
	_ = w.nic.Flush() // a link that is down loses what was queued for it
}

// closeGuests drops what waits for the guests, and closes them.
func (w *Worker) closeGuests() {
	for _, p := range w.list {
		w.dropQueued(p, flowtable.ReasonPortDown)
		w.closeGuest(p)
	}
}

// ended is the last thing that the goroutine does. A fault of ours ends this worker and no other: the control side hears of it
// and makes a new one.
func (w *Worker) ended() {
	r := recover()
	if r != nil {
		w.fault = fmt.Errorf("worker %d: %w: %v", w.cfg.ID, ErrFault, r)
		w.log.Error("worker: fault", "err", w.fault, "stack", string(debug.Stack()))
	}
	for _, p := range w.list {
		p.endProbes(ProbeWorkerGone)
	}
	close(w.dead)
	if r != nil { // who looks now finds the fault
		w.cfg.Trouble()
	}
}

// step moves one burst in each direction. It reports whether there was anything to do.
func (w *Worker) step() bool {
	for len(w.cmds) > 0 {
		c := <-w.cmds
		w.now = w.clock()
		c.fn()
		close(c.done)
	}
	if w.suspended {
		return false
	}
	w.stepBegins()
	if w.judged {
		w.carryOut()
	}
	w.turn++
	w.owed = false
	w.reap()
	n := w.receiveTurn()
	if w.host.ready {
		n += w.receiveHost()
	}
	n += w.transmit()
	if w.nic.TxPending() > 0 { // also what the kernel had no room for the last time
		if err := w.nic.Flush(); err != nil {
			w.nicBroken = true
		}
	}
	w.nic.Refill()
	if n > 0 {
		w.activity.Store(w.activity.Load() + 1) // one writer
	}
	w.stepEnds()
	return n > 0 || w.owed
}

// receiveTurn moves what the NIC has into the guests, burst by burst, until it has no more or the turn is over.
func (w *Worker) receiveTurn() (total int) {
	for range rxBursts {
		n := w.receiveBurst()
		if total += n; n < BurstFrames {
			break
		}
	}
	return total
}

// receiveBurst moves one burst from the NIC into the guests.
func (w *Worker) receiveBurst() int {
	w.now = w.clock()
	n := w.receive()
	w.table.EndBurst(w.now)
	w.flush()
	w.nic.Refill()
	return n
}
