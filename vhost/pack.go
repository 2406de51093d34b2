package vhost

import (
	"fmt"
	"net"
	"time"

	"github.com/rscctl/rscctl/vhost/unixsock"
	"github.com/rscctl/rscctl/vhost/user"
)

// packWithin bounds Pack: what a front-end notices of it is a request that is answered so much later.
const packWithin = time.Second

// packing is a Pack that waits for the control goroutine. All but answer and only is guarded by Port.mu.
type packing struct {
	only      bool // it is Describe: the port goes on
	withdrawn bool // nobody waits any more
	answered  bool // with what the port is
	answer    chan packed
}

type packed struct {
	state PortState
	files []NamedFile
	err   error
}

// Pack stops the port without its front-end, or the guest, noticing, and returns all
// that Unpack needs to go on, in this process or another: the state, and duplicates
// of all descriptors, which are the caller's. It waits for the message that is being
// dealt with, and leaves those that wait in the socket, also one that is half there;
// Hooks.BeforeStop is called as before any stop of the rings, and delivers what is
// held; Hooks.Stopped is not called, as no connection has ended. Connections that
// nobody has accepted wait in the listening socket. Nothing is closed that the peer
// would notice, the socket's file stays, and the Keeper is told nothing. Afterwards
// the port is as one that was closed; Close waits until it has let go of its mappings,
// which may take a while and concerns nobody.
//
// It must not be called by a hook, nor with a lock that a hook takes.
//
// The errors: ErrBusy, after 1 s, where a message, a hook or a queue takes longer: the
// port goes on as before. ErrClosed. And those of descriptors that cannot be
// duplicated: then it goes on, too.
func (p *Port) Pack() (PortState, []NamedFile, error) {
	p.packMu.Lock()
	defer p.packMu.Unlock()
	r := p.pack()
	if r.err != nil {
		return PortState{}, nil, fmt.Errorf("port %s: pack: %w", p.cfg.Name, r.err)
	}
	_ = p.end()
	return r.state, r.files, nil
}

// Describe returns what Pack would, of a port that goes on: how it is between two
// messages of its front-end, of which nothing is stopped. A connection that nobody
// has taken is left out, and the bases of rings that run are old. The errors are those
// of Pack.
func (p *Port) Describe() (PortState, []NamedFile, error) {
	p.packMu.Lock()
	defer p.packMu.Unlock()
	r := p.packed(&packing{only: true, answer: make(chan packed, 1)}, nil)
	if r.err != nil {
		return PortState{}, nil, fmt.Errorf("port %s: describe: %w", p.cfg.Name, r.err)
	}
	return r.state, r.files, nil
}

// ask has the control goroutine do what Pack waits for.
func (p *Port) ask(k *packing) {
	p.mu.Lock()
	p.packing = k
	if p.session != nil {
		p.session.Pause()
	}
	p.mu.Unlock()
	select {
	case p.asked <- struct{}{}:
	default:
	}
}

func (p *Port) pack() packed {
	k := &packing{answer: make(chan packed, 1)}
	p.mu.Lock()
	if p.closing {
		p.mu.Unlock()
		return packed{err: ErrClosed}
	}
	p.wg.Add(1) // the intake may have to be started again
	p.mu.Unlock()
	defer p.wg.Done()
	waiting := p.halt(p.intake)
	r := p.packed(k, waiting)
	if r.err != nil {
		if p.ctx.Err() != nil { // whatever came of it
			r.err = ErrClosed
		}
		p.intake = p.take(waiting) // whose context has ended where the port is closed
		return r
	}
	if waiting != nil {
		_ = waiting.Close()
	}
	return r
}

// packed asks the control goroutine, waits for it, and adds what is not its. That comes first: once the control goroutine has answered, the port is
// packed, and an error would leave it in nobody's hands.
func (p *Port) packed(k *packing, waiting *net.UnixConn) packed {
	var own []NamedFile
	if p.l != nil {
		fd, err := p.l.Dup()
		if err != nil {
			return packed{err: err}
		}
		own = append(own, NamedFile{Name: listenerFile, FD: fd})
	}
	if waiting != nil {
		fd, err := unixsock.Dup(waiting)
		if err != nil {
			user.CloseFiles(own)
			return packed{err: fmt.Errorf("connection: %w", err)}
		}
		own = append(own, NamedFile{Name: waitingFile, FD: fd})
	}
	p.ask(k)
	t := time.NewTimer(packWithin)
	defer t.Stop()
	var r packed
	select {
	case r = <-k.answer:
	case <-p.ctx.Done():
		r.err = ErrClosed
	case <-t.C:
		r.err = ErrBusy
	}
	if r.err != nil && !p.withdraw(k) { // it came in between
		r = <-k.answer
	}
	if r.err != nil {
		user.CloseFiles(own)
		return r
	}
	if waiting != nil {
		r.state.Waiting = waitingFile
	}
	r.files = append(own, r.files...)
	return r
}

// withdraw ends a Pack. It says false when the port is packed already.
func (p *Port) withdraw(k *packing) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k.answered {
		return false
	}
	k.withdrawn = true
	p.unask(k)
	return true
}

// unask forgets a Pack that came to nothing. The caller holds mu.
func (p *Port) unask(k *packing) {
	if p.packing != k {
		return
	}
	p.packing = nil
	if p.session != nil {
		p.session.Unpause()
	}
}

// packUp does what Pack waits for, if it does, with the session that Run has been paused for, or nil. It says whether the port is
// packed: then it is not ours any more. Control goroutine only.
func (p *Port) packUp(s *user.Session) bool {
	p.mu.Lock()
	k := p.packing
	if k == nil || p.closing || s != nil && p.failure != nil {
		// With a failure the session ends first, by Run.
		p.mu.Unlock()
		return false
	}
	p.mu.Unlock()
	defer func() {
		if r := recover(); r != nil { // a mistake of ours: the port goes on
			p.thaw(s)
			p.giveUpPack(k, user.FaultError(r))
		}
	}()
	if s != nil && !k.only {
		if err := s.Freeze(); err != nil {
			p.giveUpPack(k, fmt.Errorf("%w: %w", ErrBusy, err))
			return false
		}
	}
	st, files := p.state(s)
	dups, err := user.DupFiles(files)
	if err != nil {
		p.thaw(s)
		p.giveUpPack(k, err)
		return false
	}
	p.mu.Lock()
	if k.withdrawn || p.closing || s != nil && p.failure != nil {
		p.mu.Unlock()
		user.CloseFiles(dups)
		p.thaw(s)
		return false
	}
	k.answered = true
	k.answer <- packed{state: st, files: dups}
	if k.only {
		p.unask(k)
		p.mu.Unlock()
		return false
	}
	p.handed, p.packing, p.session = true, nil, nil
	p.mu.Unlock()
	if s != nil {
		p.contain("pack", s.Leave)
	}
	return true
}

func (p *Port) thaw(s *user.Session) {
	if s == nil {
		return
	}
	if err := s.Thaw(); err != nil {
		p.logf("hand-over given up: %v", err)
	}
}

// giveUpPack answers that the port goes on.
func (p *Port) giveUpPack(k *packing, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unask(k)
	k.answer <- packed{err: err}
}
