package vhost

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rscctl/rscctl/vhost/unixsock"
	"github.com/rscctl/rscctl/vhost/user"
)

// packWithin bounds Pack: what a front-end notices of it is a request that is answered so much later.
const packWithin = time.Second

// packing is a Pack that waits for the control goroutine. All but answer is guarded by Port.mu.
type packing struct {
	withdrawn bool // nobody waits any more
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

// packed waits for the control goroutine, and adds what is not its.
func (p *Port) packed(k *packing, waiting *net.UnixConn) packed {
	var own []NamedFile
	if p.l != nil {
		fd, err := p.l.Dup()
		if err != nil {
			p.withdraw(k)
			return packed{err: err}
		}
		own = append(own, NamedFile{Name: listenerFile, FD: fd})
	}
	if waiting != nil {
		fd, err := unixsock.Dup(waiting)
		if err != nil {
			p.withdraw(k)
			user.CloseFiles(own)
			return packed{err: fmt.Errorf("connection: %w", err)}
		}
		own = append(own, NamedFile{Name: waitingFile, FD: fd})
	}
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
	if p.handed {
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
	if s != nil {
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
	p.handed, p.packing, p.session = true, nil, nil
	k.answer <- packed{state: st, files: dups}
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

// Unpack makes a Port that goes on where another one was, by Pack or by what a Keeper
// was told last: the front-end keeps its connection, and the guest its rings. The
// files are the Port's afterwards, and are closed on an error, without a sign to the
// front-end: whoever has duplicates can still Unpack them.
//
// A ring goes on at its used.idx, whatever the state says: buffers are completed in
// order. What was taken and not completed is taken again. The guest is called once for
// every ring that runs, and every such ring counts as kicked. Hooks.Started is called as
// for any start, before Unpack returns unless it takes longer than 1 s: what moves
// frames may begin then. A state with Pending, and what a
// connection that has ended leaves, make a port without a front-end, which listens, or
// dials.
//
// cfg is as for NewPort; its socket must be the state's, and it must offer what was
// negotiated. Files that the state does not name are closed, and the Keeper is told to drop
// them: a crash leaves such. A connection among them is ended.
//
// Whoever gives up after Unpack, so that the process before goes on, ends by Pack or by
// exiting: Close ends the connection.
//
// The errors are ErrConfig, ErrNewer, ErrParcel (what of the state, or which file, is
// wrong: missing, twice, of another kind), and those of the system.
func Unpack(cfg Config, st PortState, files []NamedFile) (*Port, error) {
	set, err := user.NewFiles(files)
	if err != nil {
		return nil, fmt.Errorf("port %s: unpack: %w", cfg.Name, err)
	}
	defer set.Close()
	p, err := newPort(cfg)
	if err != nil {
		return nil, err
	}
	waiting, s, err := p.unpack(&st, set)
	if err != nil {
		if p.l != nil {
			_ = p.l.Leave()
		}
		if waiting != nil {
			_ = waiting.Close()
		}
		return nil, p.abandon(fmt.Errorf("unpack: %w", err))
	}
	set.HangUpRest()
	if p.journal != nil {
		p.journal.adopt(files)
	}
	if s != nil {
		p.setSession(s)
		p.notef("front-end taken over (process %d)", s.Info().PeerPID)
	}
	p.start(waiting, s)
	return p, nil
}

func (p *Port) unpack(st *PortState, files *user.Files) (waiting *net.UnixConn, s *user.Session, err error) {
	if err := st.checkSchema(); err != nil {
		return nil, nil, err
	}
	if st.Socket != p.cfg.Socket || st.Connect != p.cfg.Connect {
		return nil, nil, fmt.Errorf("state of the socket %.128q, dialled: %t; not of %s: %w", st.Socket, st.Connect, p.cfg.Socket, ErrParcel)
	}
	p.carry(st)
	p.sessions = st.Sessions
	switch {
	case st.Gone:
		p.last = fmt.Errorf("connection: %w", ErrDisconnected)
	case st.Last != "":
		p.last = errors.New(st.Last)
	}
	if !st.Connect {
		if st.ID == nil {
			return nil, nil, fmt.Errorf("no identity of the socket's file: %w", ErrParcel)
		}
		fd, err := files.Take(st.Listener)
		if err != nil {
			return nil, nil, err
		}
		if p.l, err = unixsock.Adopt(socketConfig(p.cfg), *st.ID, fd); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrParcel, socketError(err))
		}
	}
	if st.Waiting != "" {
		fd, err := files.Take(st.Waiting)
		if err != nil {
			return nil, nil, err
		}
		if waiting, err = user.AdoptConn(fd); err != nil {
			return nil, nil, fmt.Errorf("file %.64q: %w", st.Waiting, err)
		}
	}
	if st.FrontEnd == nil {
		return waiting, nil, nil
	}
	if st.Pending != "" { // nobody takes its connection, which ends with the rest
		p.last = fmt.Errorf("%.32q was half done when the process before ended: %w", st.Pending, ErrHalfDone)
		return waiting, nil, nil
	}
	s, err = user.RestoreSession(p.sessionConfig(p.sessions), st.FrontEnd, files)
	return waiting, s, err
}
