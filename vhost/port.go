package vhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/unixsock"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// DefaultFeatures is what a Port can do for a guest.
const DefaultFeatures = virtio.Features(1<<virtio.FCsum | 1<<virtio.FGuestCsum | 1<<virtio.FMTU |
	1<<virtio.FGuestTSO4 | 1<<virtio.FGuestTSO6 | 1<<virtio.FGuestECN |
	1<<virtio.FGuestUSO4 | 1<<virtio.FGuestUSO6 |
	1<<virtio.FHostTSO4 | 1<<virtio.FHostTSO6 | 1<<virtio.FHostECN | 1<<virtio.FHostUSO |
	1<<virtio.FMrgRxbuf | 1<<virtio.FGuestAnnounce | 1<<virtio.FMQ |
	1<<virtio.FIndirectDesc | 1<<virtio.FEventIdx | 1<<virtio.FVersion1 | 1<<virtio.FRSCExt)

// MaxQueuePairs bounds Config.MaxPairs: ring numbers are one byte in the
// messages that carry eventfds.
const MaxQueuePairs = 128

// LinuxBuffers is a Config.MaxBuffers for guests that run Linux: the page
// fragments that its frames have room for (MAX_SKB_FRAGS). What is more it
// strings together as a list of frames, which costs it dearly when it forwards
// them.
const LinuxBuffers = 17

const (
	defaultPairs = 8
	// closeAfter bounds Close: longer than the control side waits for a queue.
	closeAfter = stuckAfter + time.Second
)

// Config describes a Port.
type Config struct {
	Name     string          // for log lines
	Socket   string          // path of the Unix socket
	Connect  bool            // dial the socket, again and again, instead of listening
	Mode     os.FileMode     // of the listening socket; 0 means 0600
	UID, GID int             // its owner; -1 keeps ours
	MaxPairs int             // queue pairs offered, 0 means 8
	MTU      int             // largest MTU accepted from the front-end, 0 means any
	Offer    virtio.Features // 0 means DefaultFeatures
	// MaxBuffers bounds the mergeable buffers that one superframe may take, 0
	// means no bound. With one, see to it that superframes keep to
	// RxQueue.MaxFrame: a guest that gets them cut into packets posts small
	// buffers for ever.
	MaxBuffers int
	// TxHead is how many bytes of a guest's frame are copied for TxFrame.Data, 0: all. It is more than the longest headers.
	TxHead int
	// AnyMemory allows guest memory on any file system but FUSE, instead of on
	// tmpfs (memfd, /dev/shm) and hugetlbfs only. A front-end can make a page
	// fault wait there, and with it the whole process: for front-ends that are
	// trusted not to, and disks that are trusted to answer.
	AnyMemory bool
	// Memory bounds what all ports that share it map together; nil is no bound.
	// Give every port of a process the same.
	Memory *guestmem.Budget
	// Keep outlives this process, and gets what a successor needs: see Keeper. nil: nobody.
	Keep Keeper
	// Logf gets one line per call, and at most ten a minute of each kind, however
	// the front-end behaves; nil discards.
	Logf func(format string, args ...any)
	// Notef is Logf for what is no trouble: a front-end that comes and goes. nil:
	// Logf gets those lines too.
	Notef func(format string, args ...any)
	Hooks Hooks

	touching func() // guestmem.Options.Touching, in tests
}

// Hooks tell the owner of a Port what happens to it. They are called on the
// control goroutine, while the front-end and with it the virtual machine waits:
// they must return within a short bound and must not call Close. Any may be
// nil. Started comes first; after it BeforePause or BeforeStop, and after
// BeforePause Started again or, should that fail, BeforeStop.
type Hooks struct {
	// Started: rings run. Features and the set of running queues stay as they
	// are until BeforePause or BeforeStop. It comes again whenever one of them
	// changes: a start of two pairs is a few such rounds.
	Started func(p *Port)
	// BeforePause: something that was promised by Started is about to change, and
	// frames go on after a moment: the memory table grows, another pair is
	// enabled, a descriptor is replaced. Until Started comes, Begin returns false:
	// keep what is held and what arrives, within a bound, and forget the kick
	// descriptors, which may be closed once this returns. Where it is nil,
	// BeforeStop is called instead.
	BeforePause func(p *Port)
	// BeforeStop: something that was promised by Started is about to change.
	// Deliver what is held and forget the kick descriptors; they are closed
	// once this returns. When the connection is lost or the port has failed, the
	// queues have stopped already.
	BeforeStop func(p *Port)
	// Stopped: the connection has ended, for that reason; nil after Close.
	Stopped func(p *Port, reason error)
}

// Port is one network device. Its methods may be called from any goroutine.
type Port struct {
	cfg    Config
	rx     []*RxQueue
	tx     []*TxQueue
	caller *user.Caller
	l      *unixsock.Listener // nil when dialling
	ctx    context.Context    // of all that the port does
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed sync.Once
	done   chan struct{} // closed by Close, once nothing of the port is left

	intake  *intake // where connections come from; changed by Pack only
	conns   chan *net.UnixConn
	packMu  sync.Mutex          // one Pack at a time
	wanted  chan struct{}       // received from when the control goroutine has no connection: for whoever dials
	asked   chan struct{}       // packing was set: for the control goroutine that has no session
	journal *journal            // nil without a Keeper
	driver  user.Driver         // of the guest of the connection before; of the control goroutine
	carried [numCounters]uint64 // of the process before
	resumed chan struct{}       // closed once Hooks.Started has been told of the rings that ran when the port was unpacked
	noted   chan struct{}       // closed once the Keeper knows what the port began with

	faults atomic.Uint64
	mtu    atomic.Int64 // what Config.MTU is by now
	limit  LogLimit

	mu       sync.Mutex
	session  *user.Session // nil without a front-end
	failure  error         // why the data path gave this session up
	last     error         // why the last session ended
	closing  bool
	packing  *packing // what Pack waits for
	handed   bool     // the port is another's
	sessions uint64
}

// NewPort opens the socket, or prepares to dial it, and starts the control
// goroutine. The errors are those of CheckSocket.
func NewPort(cfg Config) (*Port, error) {
	p, err := newPort(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Connect {
		err = CheckSocket(cfg)
	} else {
		p.l, err = listen(cfg)
	}
	if err != nil {
		return nil, p.abandon(err)
	}
	p.start(nil, nil)
	return p, nil
}

// newPort makes a port that does nothing yet.
func newPort(cfg Config) (*Port, error) {
	if cfg.MaxPairs == 0 {
		cfg.MaxPairs = defaultPairs
	}
	if cfg.MaxBuffers == 0 {
		cfg.MaxBuffers = vring.MaxSize
	}
	if cfg.Offer == 0 {
		cfg.Offer = DefaultFeatures
	}
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.Notef == nil {
		cfg.Notef = cfg.Logf
	}
	if cfg.MaxBuffers < 0 {
		return nil, fmt.Errorf("port %s: %d buffers: %w", cfg.Name, cfg.MaxBuffers, ErrConfig)
	}
	if cfg.MaxPairs < 1 || cfg.MaxPairs > MaxQueuePairs {
		return nil, fmt.Errorf("port %s: %d queue pairs, 1 to %d are possible: %w", cfg.Name, cfg.MaxPairs, MaxQueuePairs, ErrConfig)
	}
	if err := cfg.Offer.Check(); err != nil {
		return nil, fmt.Errorf("port %s: %w: %w", cfg.Name, ErrConfig, err)
	}
	caller, err := user.NewCaller()
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", cfg.Name, err)
	}
	p := &Port{cfg: cfg, caller: caller, done: make(chan struct{}), conns: make(chan *net.UnixConn), wanted: make(chan struct{}), asked: make(chan struct{}, 1),
		resumed: make(chan struct{}), noted: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.mtu.Store(int64(cfg.MTU))
	if cfg.Keep != nil {
		p.journal = newJournal(p, cfg.Keep)
	}
	meters := user.NewMeters(4 * cfg.MaxPairs)
	for i := range cfg.MaxPairs {
		rx, tx := meters[4*i:], meters[4*i+2:]
		p.rx = append(p.rx, &RxQueue{queue: queue{port: p, name: fmt.Sprintf("rx queue %d", i), callCost: rx[0], kickCost: rx[1]}})
		p.tx = append(p.tx, &TxQueue{queue: queue{port: p, name: fmt.Sprintf("tx queue %d", i), callCost: tx[0], kickCost: tx[1]}, head: cfg.TxHead})
	}
	if !caller.Asynchronous() {
		p.logf("no asynchronous I/O to be had (fs.aio-nr, fs.aio-max-nr): calls to the guest go through a thread of their own")
	}
	return p, nil
}

// start starts the goroutines: with a connection that was accepted and not yet served, and with a session that runs already. Either
// may be nil. It waits until Hooks.Started has been told of the rings that run.
func (p *Port) start(waiting *net.UnixConn, s *user.Session) {
	p.intake = p.take(waiting)
	if s == nil {
		p.journal.note(nil)
		close(p.noted)
	}
	p.wg.Go(func() { p.control(s) })
	if s == nil {
		return
	}
	t := time.NewTimer(packWithin)
	defer t.Stop()
	select {
	case <-p.resumed:
	case <-t.C: // somebody holds a hook
	}
}

// resume tells of the rings of a session that ran already, and then the Keeper: guests do not wait for that. Control goroutine only.
func (p *Port) resume(s *user.Session) {
	defer close(p.noted)
	func() {
		defer close(p.resumed)
		s.Resume()
	}()
	p.journal.note(s)
}

// Noted waits until the Keeper knows all of a port that Unpack, or Start, has made: before the process says that it goes on with it.
// ErrBusy: it does not yet, after 1 s.
func (p *Port) Noted() error {
	t := time.NewTimer(packWithin)
	defer t.Stop()
	select {
	case <-p.noted:
		return nil
	case <-t.C:
		return fmt.Errorf("port %s: journal: %w", p.cfg.Name, ErrBusy)
	}
}

// SetMTU replaces Config.MTU for the front-ends that connect from now on; one that is connected keeps what it was told.
func (p *Port) SetMTU(mtu int) { p.mtu.Store(int64(mtu)) }

// abandon undoes what NewPort has done for a port that it does not start.
func (p *Port) abandon(err error) error {
	p.cancel()
	return fmt.Errorf("port %s: %w", p.cfg.Name, errors.Join(err, p.caller.Close()))
}

// fail ends the session from a data goroutine, which holds a queue's lock. It
// does not wait.
func (p *Port) fail(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure == nil {
		p.failure = reason
	}
	if p.session != nil {
		p.session.Interrupt()
	}
}

// Close stops the rings, ends the connection and removes the socket file if it
// is still ours. It returns when the control goroutine has ended, or after 3 s
// with ErrStuck: somebody holds a queue or a hook, or a file of the front-end's
// does not answer. Then the port goes on stopping by itself. Until it has, the
// guest's memory stays mapped and its descriptors stay open, because whoever
// holds it may use them; another Close waits for it again. After Pack it does
// nothing.
func (p *Port) Close() error {
	err := p.end()
	t := time.NewTimer(closeAfter)
	defer t.Stop()
	select {
	case <-p.done:
		return err
	case <-t.C:
	}
	why := p.State().Err
	if why == nil {
		why = ErrStuck
	}
	return errors.Join(err, fmt.Errorf("port %s: %w", p.cfg.Name, why))
}

// end begins the end of the port, once. What is packed stays open for the peer.
func (p *Port) end() (err error) {
	p.closed.Do(func() {
		p.mu.Lock()
		p.closing = true
		s, packed := p.session, p.handed
		p.mu.Unlock()
		p.cancel()
		switch {
		case p.l == nil:
		case packed:
			err = p.l.Leave()
		default:
			err = p.l.Close()
		}
		if s != nil {
			s.Interrupt()
		}
		go func() {
			p.wg.Wait()
			if err := p.caller.Close(); err != nil { // the rings have stopped: nobody calls
				p.logf("%v", err)
			}
			if !packed {
				p.journal.forget()
			}
			if n := p.limit.Left(); n > 0 {
				p.logf("%d log lines were left out", n)
			}
			close(p.done)
		}()
	})
	return err
}

// MaxPairs returns how many pairs RX and TX know.
func (p *Port) MaxPairs() int { return len(p.rx) }

// RX returns the receive queue of pair i; it panics unless 0 <= i < MaxPairs.
func (p *Port) RX(i int) *RxQueue { return p.rx[i] }

// TX returns the transmit queue of pair i, as RX does.
func (p *Port) TX(i int) *TxQueue { return p.tx[i] }

// logf writes a line, unless ten with that format were written this minute: the
// front-end can provoke each of them.
func (p *Port) logf(format string, args ...any) { p.write(p.cfg.Logf, format, args) }

// notef is logf for what is no trouble.
func (p *Port) notef(format string, args ...any) { p.write(p.cfg.Notef, format, args) }

func (p *Port) write(to func(string, ...any), format string, args []any) {
	left, ok := p.limit.Allow(format)
	if !ok {
		return
	}
	if left > 0 {
		format, args = format+" (%d lines like this were left out)", append(args, left)
	}
	to("port %s: "+format, append([]any{p.cfg.Name}, args...)...)
}
