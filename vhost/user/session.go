package user

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// maxRefusals ends a session whose peer asks for nothing that can be granted.
const maxRefusals = 256

// Device is what a Session serves: it runs the rings. All calls come from the
// goroutine in Run.
//
// Whatever is running changes only between BeforeChange and AfterChange. When
// the connection is lost the rings are stopped first and BeforeChange follows.
type Device interface {
	// BeforeChange: pause says that rings go on with the AfterChange that follows;
	// should something fail in between, a BeforeChange that is no pause comes.
	BeforeChange(pause bool)
	AfterChange()
	// StartRing runs a ring that is stopped; it may get buffers at once. With an
	// error nothing runs and nothing of r was kept; otherwise r.Dev, and with it
	// the hold on the guest's memory, is the device's. The eventfds stay the
	// session's and open until StopRing and BeforeChange have returned.
	StartRing(r RingSetup) error
	// StopRing ends it, closes its r.Dev and returns its base: where the next device
	// goes on. An error means that the ring may still be in use: its memory stays.
	// For a ring that does not run it does nothing.
	StopRing(index int) (base vring.Position, err error)
	// EnableRing is told to rings running or not.
	EnableRing(index int, on bool) error
	// SetCall replaces the call eventfd of a running ring; nil for none. The old
	// one is closed after it returns, unless with an error.
	SetCall(index int, call *EventFD) error
}

// RingSetup is a ring that is ready to run.
type RingSetup struct {
	Index      int // RX of pair p is 2p, TX 2p+1
	Size       int // descriptors
	Enabled    bool
	Features   virtio.Features
	Dev        vring.Device
	Kick, Call *EventFD // nil where the front-end gave none
	// Rejoined: a device of ours ran the ring before, perhaps in a process that died. It may owe the guest a call, and may have
	// swallowed a kick: give both.
	Rejoined bool
}

// SessionConfig says what a Session offers.
type SessionConfig struct {
	Features virtio.Features  // PROTOCOL_FEATURES is added
	Protocol ProtocolFeatures // 0 means DefaultProtocol
	MaxPairs int
	MaxMTU   int // 0: any
	Memory   guestmem.Options
	Device   Device
	Before   Driver                           // of the guest of the connection before
	Journal  Journal                          // nil: nobody writes one
	Serial   uint64                           // of this session among those whose files are kept together: a part of their names
	Logf     func(format string, args ...any) // for refusals that do not end the session; may be nil
}

// Info is a snapshot of what a session has learnt.
type Info struct {
	Features  virtio.Features // PROTOCOL_FEATURES left out
	Protocol  ProtocolFeatures
	MTU       int
	Status    uint8 // of the virtio device, as the front-end last said
	Regions   int
	Sealed    bool   // no memory file can shrink
	QueueSize int    // descriptors of ring 0
	Warning   string // what is wrong with a ring that runs, or keeps rings from running; "" if nothing is
	PeerPID   int
}

// Session is the back-end's side of one connection.
type Session struct {
	cfg  SessionConfig
	conn *Conn
	dev  Device

	features   virtio.Features
	negotiated bool // SET_FEATURES was seen
	protocol   ProtocolFeatures
	mtu        int
	refused    string // why the front-end will get no further, for Info.Warning
	status     uint8
	mem        *guestmem.Table // never nil; without regions when there is no memory
	removed    []MemRegion     // taken away and not added again, the newest guestmem.MaxRegions
	rings      []ring
	refusals   int
	pace       pace
	answers    *answers // nil without a Journal
	owed       Answer   // to the message owedTo, by the session before
	owedTo     string
	again      bool   // the session before had begun with the message that is next
	serial     uint64 // of the last eventfd
	fault      error  // ends the session with the next Run

	interrupted atomic.Bool
	work        atomic.Pointer[work]

	mu   sync.Mutex
	info Info
}

// ring is what the front-end has said about one virtqueue.
type ring struct {
	num     int
	base    vring.Position
	addr    VringAddr
	hasAddr bool
	lost    int  // chains between used.idx and where the ring goes on: see vring.Resumption
	kicked  bool // SET_VRING_KICK was seen: the ring shall run
	enabled bool
	running bool
	frozen  bool         // it ran before Freeze
	dev     vring.Device // while it runs
	warning string       // of its last start
	// forgotten: the features are not those of the driver that has laid the ring out.
	forgotten bool
	kick      *EventFD
	call      *EventFD
	err       *EventFD
}

// NewSession takes over conn.
func NewSession(conn *Conn, cfg SessionConfig) *Session {
	if cfg.Protocol == 0 {
		cfg.Protocol = DefaultProtocol
	}
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	s := &Session{cfg: cfg, conn: conn, dev: cfg.Device, mem: guestmem.NewTable(cfg.Memory), rings: make([]ring, 2*cfg.MaxPairs)}
	s.info.PeerPID = conn.PeerPID()
	if cfg.Journal != nil {
		s.answers, s.fault = newAnswers()
	}
	return s
}

// told says whether anything is known of the ring.
func (r *ring) told() bool {
	return r.num != 0 || r.hasAddr || r.enabled || r.kick != nil || r.call != nil || r.err != nil
}

// Interrupt makes Run return soon and shows the front-end that the connection
// is over. It does not wait. Safe from any goroutine.
func (s *Session) Interrupt() {
	s.interrupted.Store(true)
	_ = s.conn.shutdown() // not Close, which waits for the reader
}

// Info returns a snapshot. Safe from any goroutine.
func (s *Session) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// work is what Run is doing, other than waiting for a message.
type work struct {
	what  string
	since time.Time
}

// Busy says what Run is doing and since when; "" while it waits for the front-end.
// Safe from any goroutine.
func (s *Session) Busy() (what string, since time.Time) {
	if w := s.work.Load(); w != nil {
		return w.what, w.since
	}
	return "", time.Time{}
}

func (s *Session) begin(what string) { s.work.Store(&work{what, time.Now()}) }

func (s *Session) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info.Features, s.info.Protocol = s.features, s.protocol
	s.info.MTU, s.info.Status = s.mtu, s.status
	s.info.QueueSize = s.rings[0].num
	s.info.Warning = s.refused
	for i := range s.rings {
		if r := &s.rings[i]; r.running && r.warning != "" {
			s.info.Warning = r.warning
			break
		}
	}
	s.info.Regions = s.mem.Len()
	s.info.Sealed = s.info.Regions > 0 && s.mem.Sealed()
}

// Run answers the front-end until the connection ends, then stops every ring
// and lets go of the guest's memory. The error says why it ended and is never
// nil. No panic leaves it: a mistake of ours, or of the Device's, is ErrInternal.
//
// ErrPaused is another matter: nothing has ended, rings run, and another Run goes on.
func (s *Session) Run() error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // for the fault that somebody forgot: see dispatch
	err := s.answer()
	if errors.Is(err, ErrPaused) {
		return err
	}
	if fault := s.end(); fault != nil {
		err = fmt.Errorf("%w (at the end after: %v)", fault, err) // a fault is none of the peer's reasons
	}
	return err
}

// answer serves messages until one cannot be had or served.
func (s *Session) answer() (err error) {
	defer caught(&err)
	if s.fault != nil {
		return s.fault
	}
	var m Message
	if err := s.settle(&m); err != nil {
		return err
	}
	for {
		s.work.Store(nil)
		h, err := s.conn.Await()
		if s.interrupted.Load() { // whatever is still in the socket
			err = ErrInterrupted
		}
		if err == nil {
			s.begin(h.Request.String())
			if j := s.cfg.Journal; j != nil {
				j.Begin(h.Request)
			}
			err = s.deal(&m)
		}
		if err != nil {
			return err
		}
	}
}

// end stops everything at once; the peer is gone or has to go. It waits for the
// data path as long as that takes: nobody waits for us any more. A mistake of ours
// in one step does not keep the others from being taken; a ring that could not be
// stopped for one keeps its eventfds, and its own hold on the guest's memory.
func (s *Session) end() (fault error) {
	step := func(fn func()) (done bool) {
		defer caught(&fault)
		fn()
		return true
	}
	s.begin("end of the connection")
	_ = s.conn.shutdown() // somebody may keep a duplicate, with which the peer would not see the end
	_ = s.conn.Close()
	lost := make([]bool, len(s.rings))
	for i := range s.rings {
		for s.rings[i].running && !lost[i] {
			lost[i] = !step(func() {
				if err := s.stopRing(i); err != nil {
					s.cfg.Logf("ring %d: %v", i, err)
				}
			})
		}
	}
	step(func() { s.dev.BeforeChange(false) })
	for i := range s.rings {
		if r := &s.rings[i]; !lost[i] {
			closeEvents(&r.kick, &r.call, &r.err)
		}
	}
	s.answers.close()
	step(func() {
		if err := s.mem.Close(); err != nil {
			s.cfg.Logf("%v", err)
		}
		s.mem = guestmem.NewTable(s.cfg.Memory)
		s.publish()
	})
	return fault
}

// closeEvents closes what is open and forgets it.
func closeEvents(events ...**EventFD) {
	for _, e := range events {
		if *e != nil {
			_ = (*e).Close()
			*e = nil
		}
	}
}
