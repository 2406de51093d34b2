package user

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// FrontendConfig says what a Frontend connects to and what it asks for.
type FrontendConfig struct {
	Socket   string           // path of the Unix socket
	Listen   bool             // serve the socket and take the first connection, instead of dialling
	Features virtio.Features  // wanted; what the back-end does not offer is left out
	Need     virtio.Features  // without these Open fails with ErrNotOffered
	Protocol ProtocolFeatures // wanted; 0 means all that the package knows
	Pairs    int              // queue pairs, 0 means 1
	RingSize int              // descriptors of every ring, 0 means 256
	Memory   int              // bytes of guest memory, rings included, 0 means 64 MiB
	Indirect int              // entries of indirect tables; 0 posts chains directly
	MTU      int              // told to the back-end if not 0 and both sides know NET_MTU
	Timeout  time.Duration    // for each reply, 0 means 5 s
}

// Frontend is the driver's end of a vhost-user connection: it owns the guest
// memory (a sealed memfd) and the driver side of every ring. It is as strict
// with replies as QEMU is. The methods that talk to the back-end are for one
// goroutine; each Ring is for one goroutine, which may be another.
type Frontend struct {
	cfg      FrontendConfig
	conn     *Conn
	features virtio.Features
	protocol ProtocolFeatures
	mem      *frontMemory
	rings    []*Ring
	started  bool
}

// OpenFrontend connects (dialling until ctx ends, or listening for one
// connection), negotiates and lays out memory and rings. The back-end runs
// nothing before Start.
func OpenFrontend(ctx context.Context, cfg FrontendConfig) (*Frontend, error) {
	if cfg.Pairs == 0 {
		cfg.Pairs = 1
	}
	if cfg.RingSize == 0 {
		cfg.RingSize = 256
	}
	if cfg.Memory == 0 {
		cfg.Memory = 64 << 20
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = messageTimeout
	}
	if cfg.Protocol == 0 {
		cfg.Protocol = DefaultProtocol
	}
	f := &Frontend{cfg: cfg}
	if err := f.open(ctx); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Frontend) open(ctx context.Context) (err error) {
	if f.mem, err = newFrontMemory(f.cfg.Memory); err != nil {
		return err
	}
	if err = f.connect(ctx); err != nil {
		return err
	}
	if err = f.negotiate(f.cfg.Features); err != nil {
		return err
	}
	return f.makeRings()
}

func (f *Frontend) connect(ctx context.Context) error {
	var c net.Conn
	if f.cfg.Listen {
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", f.cfg.Socket)
		if err != nil {
			return fmt.Errorf("front-end: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		c, err = l.Accept()
		stop()
		_ = l.Close()
		if err != nil {
			return fmt.Errorf("front-end: accept on %s: %w", f.cfg.Socket, errors.Join(ctx.Err(), err))
		}
	} else {
		for {
			var d net.Dialer
			var err error
			if c, err = d.DialContext(ctx, "unix", f.cfg.Socket); err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("front-end: %w", err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("front-end: %w", err)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	f.conn = NewConn(c.(*net.UnixConn))
	return nil
}

// Reconnect replaces a lost connection and, if the rings ran, starts them
// again where the back-end left them: at used.idx, as QEMU does, which loses
// and repeats nothing if the back-end completes in order.
func (f *Frontend) Reconnect(ctx context.Context) error {
	was := f.started
	f.started = false
	_ = f.conn.Close()
	if err := f.connect(ctx); err != nil {
		return err
	}
	acked := f.features
	if err := f.negotiate(acked); err != nil {
		return err
	}
	if f.features != acked {
		return fmt.Errorf("front-end: reconnect: %w", ErrNotOffered)
	}
	for _, r := range f.rings {
		r.base = r.usedIndex()
	}
	if was {
		return f.Start()
	}
	return nil
}

// Renegotiate does what a guest does when its driver is loaded again: the
// rings stop, other features are acknowledged, the rings begin afresh. Buffers
// posted before are forgotten.
func (f *Frontend) Renegotiate(features virtio.Features) error {
	if f.started {
		if _, err := f.Stop(); err != nil {
			return err
		}
	}
	offered, err := f.getU64(GetFeatures)
	if err != nil {
		return err
	}
	f.features = features & virtio.Features(offered)
	for _, r := range f.rings {
		if err := r.reset(f.features); err != nil {
			return err
		}
	}
	return nil
}

// Features returns what was negotiated, PROTOCOL_FEATURES left out.
func (f *Frontend) Features() virtio.Features { return f.features }

// Protocol returns the negotiated protocol features.
func (f *Frontend) Protocol() ProtocolFeatures { return f.protocol }

// Pairs returns the number of queue pairs.
func (f *Frontend) Pairs() int { return f.cfg.Pairs }

// RX returns the receive ring of pair i, TX its transmit ring.
func (f *Frontend) RX(i int) *Ring { return f.rings[2*i] }

// TX returns the transmit ring of pair i.
func (f *Frontend) TX(i int) *Ring { return f.rings[2*i+1] }

// Alloc takes n bytes of guest memory, aligned to align, a power of two. There
// is no way to give them back. The error is ErrNoMemory.
func (f *Frontend) Alloc(n, align int) (gpa uint64, mem []byte, err error) {
	return f.mem.alloc(n, align)
}

// MemoryFile returns the memfd behind the guest's memory; it stays ours.
func (f *Frontend) MemoryFile() int { return f.mem.fd }

// Gone waits until the back-end closes the connection or ctx ends, and says
// which. It must not run beside a method that waits for replies.
func (f *Frontend) Gone(ctx context.Context) error {
	raw, err := f.conn.c.SyscallConn()
	if err != nil {
		return peerError(err)
	}
	if err := f.conn.c.SetReadDeadline(time.Time{}); err != nil {
		return peerError(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.conn.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	var n int
	err = raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return peerError(err)
	case n > 0:
		return fmt.Errorf("front-end: unasked message: %w", ErrReply)
	}
	return fmt.Errorf("front-end: %w", ErrDisconnected)
}

// Close ends the connection without stopping rings, as a crash would, and frees
// everything. Rings and memory must not be used any more.
func (f *Frontend) Close() error {
	var errs []error
	if f.conn != nil {
		errs = append(errs, f.conn.Close())
	}
	for _, r := range f.rings {
		errs = append(errs, r.close())
	}
	f.rings = nil
	if f.mem != nil {
		errs = append(errs, f.mem.close())
	}
	return errors.Join(errs...)
}
