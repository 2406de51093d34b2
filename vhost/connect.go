package vhost

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/user"
)

const (
	// handover is how long a new connection waits for the old one to be torn
	// down: a front-end that comes back at once is not an intruder. Stopping one
	// ring may take as long.
	handover = stuckAfter
	// redialPause keeps a front-end that we dial and that fails each time from
	// being dialled in a tight loop.
	redialPause = 200 * time.Millisecond
)

// contain runs a piece of one of the port's goroutines. A panic there, a mistake of
// ours or of a hook, is counted and told instead of ending the process with all
// other ports.
func (p *Port) contain(what string, fn func()) (fine bool) {
	defer func() {
		if r := recover(); r != nil {
			p.faults.Add(1)
			p.logf("%s: %v", what, user.FaultError(r))
		}
	}()
	fn()
	return true
}

// acceptLoop hands connections to the control goroutine, which takes one at a
// time. A second front-end is turned away.
func (p *Port) acceptLoop(ctx context.Context, conns chan<- *net.UnixConn) {
	defer close(conns)
	for ctx.Err() == nil {
		pause := true
		p.contain("accept", func() { pause = p.accept(ctx, conns) })
		if !pause {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// accept takes one connection. It says whether to pause before the next.
func (p *Port) accept(ctx context.Context, conns chan<- *net.UnixConn) (pause bool) {
	c, err := p.l.AcceptUnix()
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			p.logf("accept: %v", err) // EMFILE and the like: they pass
		}
		return true
	}
	t := time.NewTimer(handover)
	defer t.Stop()
	select {
	case conns <- c:
	case <-t.C:
		_ = c.Close()
		p.logf("second front-end refused, one is connected")
	case <-ctx.Done():
		_ = c.Close()
	}
	return false
}

func (p *Port) dialLoop(ctx context.Context) {
	for {
		c, err := dial(ctx, p.cfg.Socket)
		if err != nil {
			return
		}
		p.serve(c)
		select {
		case <-ctx.Done():
			return
		case <-time.After(redialPause):
		}
	}
}

// serve runs one connection to its end.
func (p *Port) serve(c *net.UnixConn) {
	if p.contain("connection", func() { p.runSession(c) }) {
		return
	}
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.last = nil, ErrInternal
}

func (p *Port) runSession(c *net.UnixConn) {
	s := user.NewSession(user.NewConn(c), user.SessionConfig{
		Features: p.cfg.Offer, MaxPairs: p.cfg.MaxPairs, MaxMTU: int(p.mtu.Load()),
		Device: &device{p: p}, Logf: p.logf, Memory: guestmem.Options{AnyFile: p.cfg.AnyMemory, Budget: p.cfg.Memory, Touching: p.cfg.touching},
	})
	p.mu.Lock()
	closing := p.closing
	p.session, p.failure = s, nil
	p.sessions++
	p.mu.Unlock()
	if closing { // Close came before it could see the session
		s.Interrupt()
	} else {
		p.notef("front-end connected (process %d)", s.Info().PeerPID)
	}

	err := s.Run()

	p.mu.Lock()
	if p.failure != nil {
		err = p.failure
	}
	if errors.Is(err, ErrInternal) {
		p.faults.Add(1)
	}
	if p.closing {
		err = nil
	}
	p.session, p.last = nil, err
	p.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, ErrInternal):
		p.logf("front-end given up: %v", err)
	case errors.Is(err, user.ErrDisconnected):
		p.notef("front-end disconnected")
	default:
		p.logf("front-end thrown out: %v", err)
	}
	if f := p.cfg.Hooks.Stopped; f != nil {
		f(p, err)
	}
}
