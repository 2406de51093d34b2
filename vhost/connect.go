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

// intake brings connections to the control goroutine, which takes one at a time.
type intake struct {
	ctx     context.Context
	stop    context.CancelFunc
	ended   chan struct{}
	dialled bool
	unused  *net.UnixConn // when it has ended: a connection that nobody has taken
}

// take starts an intake. waiting, unless nil, is its first connection.
func (p *Port) take(waiting *net.UnixConn) *intake {
	in := &intake{ended: make(chan struct{}), unused: waiting}
	in.ctx, in.stop = context.WithCancel(p.ctx)
	next := p.accept
	if p.cfg.Connect {
		next = p.dial
	}
	p.wg.Go(func() {
		defer close(in.ended)
		for in.ctx.Err() == nil {
			pause := time.Second // after a panic
			p.contain("accept", func() { pause = next(in) })
			if pause <= 0 {
				continue
			}
			select {
			case <-in.ctx.Done():
			case <-time.After(pause):
			}
		}
		if p.ctx.Err() != nil && in.unused != nil { // the port closes
			_ = in.unused.Close()
			in.unused = nil
		}
	})
	return in
}

// halt ends the intake and returns the connection that nobody has taken, or nil. Those that wait to be accepted go on waiting.
func (p *Port) halt(in *intake) (unused *net.UnixConn) {
	in.stop()
	if p.l != nil {
		_ = p.l.SetDeadline(time.Unix(1, 0))
	}
	<-in.ended
	if p.l != nil {
		_ = p.l.SetDeadline(time.Time{})
	}
	unused, in.unused = in.unused, nil
	return unused
}

// accept takes one connection. A second front-end is turned away. It says how long to pause before the next.
func (p *Port) accept(in *intake) (pause time.Duration) {
	c := in.unused
	if c == nil {
		var err error
		if c, err = p.l.AcceptUnix(); err != nil {
			if in.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				p.logf("accept: %v", err) // EMFILE and the like: they pass
			}
			return time.Second
		}
	}
	in.unused = c
	t := time.NewTimer(handover)
	defer t.Stop()
	select {
	case p.conns <- c:
		in.unused = nil
	case <-t.C:
		in.unused = nil
		_ = c.Close()
		p.logf("second front-end refused, one is connected")
	case <-in.ctx.Done():
	}
	return 0
}

// dial makes one connection, and waits until it has ended.
func (p *Port) dial(in *intake) (pause time.Duration) {
	if in.unused == nil {
		select {
		case <-p.wanted: // until then there is nobody to dial for
		case <-in.ctx.Done():
			return 0
		}
		if in.dialled {
			select {
			case <-time.After(redialPause):
			case <-in.ctx.Done():
				return 0
			}
		}
		in.dialled = true
		c, err := dial(in.ctx, p.cfg.Socket)
		if err != nil {
			return 0
		}
		in.unused = c
	}
	select {
	case p.conns <- in.unused:
		in.unused = nil
	case <-in.ctx.Done():
	}
	return 0
}

// control is the control goroutine. s is a session to go on with, or nil.
func (p *Port) control(s *user.Session) {
	if s != nil && p.serve(func() bool { p.resume(s); return p.runSession(s) }) {
		return
	}
	for !p.packUp(nil) {
		var wanted chan<- struct{} // where nobody dials, nobody is asked to
		if p.cfg.Connect {
			wanted = p.wanted
		}
		select {
		case wanted <- struct{}{}:
		case <-p.asked: // to pack
		case <-p.ctx.Done():
			return
		case c := <-p.conns:
			if p.serve(func() bool { return p.runSession(p.newSession(c)) }) {
				return
			}
			_ = c.Close() // where a panic has left it open
		}
	}
}

// serve runs one connection to its end, or until the port is packed.
func (p *Port) serve(run func() (packed bool)) (packed bool) {
	if p.contain("connection", func() { packed = run() }) {
		return packed
	}
	p.mu.Lock()
	p.session, p.last = nil, ErrInternal
	handed := p.handed
	p.mu.Unlock()
	if !handed {
		p.contain("journal", func() { p.journal.note(nil) })
	}
	return handed
}

func (p *Port) sessionConfig(serial uint64) user.SessionConfig {
	cfg := user.SessionConfig{
		Features: p.cfg.Offer, MaxPairs: p.cfg.MaxPairs, MaxMTU: int(p.mtu.Load()),
		Device: &device{p: p}, Serial: serial, Logf: p.logf, Before: p.driver,
		Memory: guestmem.Options{AnyFile: p.cfg.AnyMemory, Budget: p.cfg.Memory, Touching: p.cfg.touching},
	}
	if p.journal != nil {
		cfg.Journal = p.journal
	}
	return cfg
}

func (p *Port) newSession(c *net.UnixConn) *user.Session {
	p.mu.Lock()
	p.sessions++
	serial := p.sessions
	p.mu.Unlock()
	s := user.NewSession(user.NewConn(c), p.sessionConfig(serial))
	p.setSession(s)
	p.journal.note(s)
	p.notef("front-end connected (process %d)", s.Info().PeerPID)
	return s
}

// setSession lets the other goroutines see a session.
func (p *Port) setSession(s *user.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session, p.failure = s, nil
	if p.closing { // Close came before it could see the session
		s.Interrupt()
	}
	if p.packing != nil {
		s.Pause()
	}
}

// runSession runs a session that setSession has shown.
func (p *Port) runSession(s *user.Session) (packed bool) {
	err := s.Run()
	for errors.Is(err, user.ErrPaused) {
		if p.packUp(s) {
			return true
		}
		err = s.Run()
	}

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
	st, _ := s.State() // without what has ended with it
	p.remember(&st)
	p.journal.note(nil)
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
	return false
}

// remember keeps what the next connection may have to recall.
func (p *Port) remember(st *user.SessionState) {
	if d := st.Driver(); d.Known() {
		p.driver = d
	}
}
