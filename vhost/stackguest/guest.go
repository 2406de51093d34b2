package stackguest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// DefaultFeatures are what a Linux guest acknowledges of what matters to the data path.
const DefaultFeatures = virtio.Features(1<<virtio.FVersion1 | 1<<virtio.FMrgRxbuf | 1<<virtio.FEventIdx |
	1<<virtio.FGuestCsum | 1<<virtio.FGuestTSO4 | 1<<virtio.FGuestTSO6 | 1<<virtio.FGuestECN | 1<<virtio.FGuestUSO4 | 1<<virtio.FGuestUSO6 |
	1<<virtio.FCsum | 1<<virtio.FHostTSO4 | 1<<virtio.FHostTSO6 | 1<<virtio.FHostECN | 1<<virtio.FHostUSO)

// Sizes a Config leaves out.
const (
	DefaultRing      = 1024
	DefaultBufferLen = 4096 // what a Linux driver arrives at under large frames; it begins at 1536
)

// txBuffers bounds the transmit buffers; each has room for the longest frame.
const txBuffers = 256

var (
	// ErrBufferLen is returned for a receive buffer that cannot hold a header and the start of a frame, or, without
	// mergeable buffers, the longest frame.
	ErrBufferLen = errors.New("receive buffer too small")
	// ErrStarted is returned by a second Start.
	ErrStarted = errors.New("already started")
)

// Config describes a Guest. Zero values mean the defaults.
type Config struct {
	Socket    string           // of the back-end
	Listen    bool             // serve the socket instead of dialling it
	Tap       string           // name of the tap to create
	MAC       net.HardwareAddr // of the VM, given to the tap
	Features  virtio.Features  // wanted, 0: DefaultFeatures
	Need      virtio.Features  // Open fails when the back-end does not offer these
	RingSize  int              // descriptors of each ring, 0: DefaultRing
	BufferLen int              // bytes of one receive buffer, header included, 0: DefaultBufferLen
	Pairs     int              // queue pairs, 0: 1
	NAPI      bool             // let frames pass NAPI and GRO in the guest's stack
}

// Guest is a running front-end with its tap.
type Guest struct {
	cfg   Config
	fe    *user.Frontend
	taps  []int
	stop  int // eventfd
	pairs []*pair

	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	done   chan struct{}
	err    error // before done is closed
}

// Open creates the tap in the calling thread's network namespace, connects to the back-end (trying until ctx ends) and
// negotiates. The tap's link is down, so that the caller can give it addresses; nothing moves before Start.
func Open(ctx context.Context, cfg Config) (_ *Guest, err error) {
	if cfg.Features == 0 {
		cfg.Features = DefaultFeatures
	}
	cfg.RingSize = orDefault(cfg.RingSize, DefaultRing)
	cfg.BufferLen = orDefault(cfg.BufferLen, DefaultBufferLen)
	cfg.Pairs = orDefault(cfg.Pairs, 1)
	g := &Guest{cfg: cfg, stop: -1, done: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = g.free()
		}
	}()
	if g.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("guest: eventfd: %w", err)
	}
	if g.taps, err = openTap(tapConfig{Name: cfg.Tap, MAC: cfg.MAC, Queues: cfg.Pairs, NAPI: cfg.NAPI}); err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	if datagrams := virtio.Mask(virtio.FGuestUSO4, virtio.FGuestUSO6, virtio.FHostUSO); cfg.Features&datagrams != 0 && !takesDatagrams(g.taps) {
		cfg.Features &^= datagrams
	}
	const rings = 1 << 18 // of 1024 descriptors: 26 KiB each, with room to spare
	g.fe, err = user.OpenFrontend(ctx, user.FrontendConfig{
		Socket: cfg.Socket, Listen: cfg.Listen, Features: cfg.Features, Need: cfg.Need,
		Pairs: cfg.Pairs, RingSize: cfg.RingSize,
		Memory: cfg.Pairs * (rings + cfg.RingSize*(cfg.BufferLen+64) + txBuffers*txStride),
	})
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	f := g.fe.Features()
	switch n := cfg.BufferLen; {
	case n < f.HdrLen()+14, !f.Has(virtio.FMrgRxbuf) && n < g.longest(f):
		return nil, fmt.Errorf("guest: %d bytes: %w", n, ErrBufferLen)
	}
	if err := agree(g.taps, f.HdrLen(), tapOffers(f)); err != nil {
		return nil, fmt.Errorf("guest: tap %s: %w", cfg.Tap, err)
	}
	for i := range cfg.Pairs {
		p, err := g.newPair(i)
		if err != nil {
			return nil, fmt.Errorf("guest: pair %d: %w", i, err)
		}
		g.pairs = append(g.pairs, p)
	}
	return g, nil
}

func orDefault(n, d int) int {
	if n == 0 {
		return d
	}
	return n
}

// longest is the longest frame that can arrive with its header: 64 KiB of IP if superframes were negotiated.
func (g *Guest) longest(f virtio.Features) int {
	if f&virtio.Mask(virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FGuestUSO4, virtio.FGuestUSO6) != 0 {
		return f.HdrLen() + maxFrame
	}
	return f.HdrLen() + 14 + 1500
}

// newPair lays out a pair's buffers and posts the receive ones.
func (g *Guest) newPair(i int) (*pair, error) {
	f := g.fe.Features()
	rx, tx := g.fe.RX(i), g.fe.TX(i)
	// Every buffer begins on a cache line; with lengths that are multiples of it they lie side by side, too.
	gpa, mem, err := g.fe.Alloc(g.cfg.RingSize*g.cfg.BufferLen, 64)
	if err != nil {
		return nil, err
	}
	p := &pair{tap: g.taps[i], stop: g.stop, rxCall: rx.CallFD(), txCall: tx.CallFD()}
	p.c.shared = &shared{}
	p.rx = rxRing{drv: rx.Driver, mem: mem, gpa: gpa, size: g.cfg.BufferLen, feat: f, kick: rx.KickFD()}
	if err := p.rx.init(g.cfg.RingSize); err != nil {
		return nil, err
	}
	n := min(txBuffers, g.cfg.RingSize)
	if gpa, mem, err = g.fe.Alloc(n*txStride, 4096); err != nil {
		return nil, err
	}
	p.tx = txRing{drv: tx.Driver, mem: mem, gpa: gpa, hdrLen: f.HdrLen(), kick: tx.KickFD()}
	p.tx.init(n)
	return p, nil
}

// Start shows the rings to the back-end and begins to move frames.
func (g *Guest) Start() error {
	if g.cancel != nil {
		return fmt.Errorf("guest: %w", ErrStarted)
	}
	if err := g.fe.Start(); err != nil {
		return fmt.Errorf("guest: start: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for i, p := range g.pairs {
		g.wg.Go(func() {
			if err := p.run(); err != nil {
				g.end(fmt.Errorf("guest: pair %d: %w", i, err))
			}
		})
	}
	g.wg.Go(func() {
		if err := g.fe.Gone(ctx); !errors.Is(err, context.Canceled) {
			g.end(fmt.Errorf("guest: %w", err))
		}
	})
	return nil
}

func (g *Guest) end(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.done)
	})
}

// Done is closed when the Guest came to its end: a ring broke or the back-end went away. Close is still due.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Err is why Done is closed, nil before.
func (g *Guest) Err() error {
	select {
	case <-g.done:
		return g.err
	default:
		return nil
	}
}

// Features are the negotiated ones.
func (g *Guest) Features() virtio.Features { return g.fe.Features() }

// Stats returns the counters, summed over the pairs. It may be called at any time, from any goroutine.
func (g *Guest) Stats() Stats {
	var s Stats
	for _, p := range g.pairs {
		p.c.shared.addTo(&s)
	}
	return s
}

// RefuseSuperframes makes the guest throw superframes away, as a kernel with a fault or an XDP program does, or take them again. It
// may be called at any time, from any goroutine.
func (g *Guest) RefuseSuperframes(on bool) {
	for _, p := range g.pairs {
		p.c.shared.refuses.Store(on)
	}
}

// Close stops the loops and the rings, in this order, ends the connection and with it removes the tap. It returns the
// error that ended the Guest before, if one did. It may be called again.
func (g *Guest) Close() error {
	err := g.Err()
	if g.cancel != nil && g.fe != nil {
		signal(g.stop)
		g.cancel()
		g.wg.Wait()
		if err == nil {
			_, err = g.fe.Stop()
		}
	}
	return errors.Join(err, g.free())
}

func (g *Guest) free() error {
	closeAll(g.taps)
	g.taps = nil
	var err error
	if g.fe != nil {
		err = g.fe.Close()
		g.fe = nil
	}
	if g.stop >= 0 {
		_ = unix.Close(g.stop)
		g.stop = -1
	}
	return err
}
