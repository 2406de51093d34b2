package vhost

import (
	"errors"
	"fmt"
	"net"
	"reflect"

	"github.com/rscctl/rscctl/vhost/unixsock"
	"github.com/rscctl/rscctl/vhost/user"
)

// Unpack makes a Port that goes on where another one was, by Pack or by what a Keeper
// was told last: the front-end keeps its connection, and the guest its rings. The
// files are the Port's afterwards, and are closed on an error, without a sign to the
// front-end: whoever has duplicates can still Unpack them.
//
// A ring goes on at its used.idx, whatever the state says: buffers are completed in
// order. What was taken and not completed is taken again. The guest is called once for
// every ring that runs, and every such ring counts as kicked. Hooks.Started is called as
// for any start, before Unpack returns unless it takes longer than 1 s: what moves
// frames may begin then. A message that was being dealt with is dealt with again, once,
// and one that was done is answered, unless it was. Of a message that has ended two
// processes, and of a connection that has ended, comes a port without a front-end, which
// listens, or dials.
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
	r, err := Prepare(cfg, st, files)
	if err != nil {
		return nil, err
	}
	return r.Start(&st)
}

// Prepared is a Port that goes on where another one is, one step before it does: what
// takes time is made, and that one may go on meanwhile. Start or Close ends it.
type Prepared struct {
	p       *Port
	st      PortState
	names   []NamedFile // of the files, for the journal
	files   *user.Files // that are left
	waiting *net.UnixConn
	session *user.Session // nil without one
}

// Prepare does what Unpack does as far as nothing of a ring is touched, nothing read
// from the front-end, nothing accepted, and nobody told, of a state and files by
// Describe, or Pack. The files are taken over as by Unpack.
func Prepare(cfg Config, st PortState, files []NamedFile) (*Prepared, error) {
	set, err := user.NewFiles(files)
	if err != nil {
		return nil, fmt.Errorf("port %s: unpack: %w", cfg.Name, err)
	}
	p, err := newPort(cfg)
	if err != nil {
		set.Close()
		return nil, err
	}
	r := &Prepared{p: p, st: st, names: files, files: set}
	if err := r.make(); err != nil {
		return nil, r.abandon(err)
	}
	return r, nil
}

// Fits says whether Start takes a state: nothing but counts and rings' bases has
// changed since the state that the port was prepared from.
func (r *Prepared) Fits(st *PortState) bool {
	return reflect.DeepEqual(r.st.fixed(), st.fixed())
}

// fixed is the state without what changes while frames move.
func (st PortState) fixed() PortState {
	st.Counters = nil
	if st.FrontEnd != nil {
		f := *st.FrontEnd
		f.Rings = append([]user.RingState(nil), f.Rings...)
		for i := range f.Rings {
			f.Rings[i].Base = 0
		}
		st.FrontEnd = &f
	}
	return st
}

// Start goes on, once the port before is packed, from the state that it had then,
// which Fits. With an error the port is closed without a sign to the front-end.
func (r *Prepared) Start(st *PortState) (*Port, error) {
	p := r.p
	if r.session != nil {
		if err := r.session.Rejoin(st.FrontEnd); err != nil {
			return nil, r.abandon(err)
		}
	}
	p.carry(st)
	r.files.HangUpRest()
	r.files.Close()
	if p.journal != nil {
		p.journal.adopt(r.names)
	}
	if r.session != nil {
		p.setSession(r.session)
		p.notef("front-end taken over (process %d)", r.session.Info().PeerPID)
	}
	p.start(r.waiting, r.session)
	return p, nil
}

// Close lets go of a port that is not started, without a sign to anybody: the one
// before goes on.
func (r *Prepared) Close() {
	r.letGo()
	_ = r.p.abandon(nil)
}

func (r *Prepared) abandon(why error) error {
	r.letGo()
	return r.p.abandon(fmt.Errorf("unpack: %w", why))
}

// letGo closes what is there, without a sign to anybody.
func (r *Prepared) letGo() {
	if r.session != nil {
		r.session.Abandon()
	}
	if r.p.l != nil {
		_ = r.p.l.Leave()
	}
	if r.waiting != nil {
		_ = r.waiting.Close()
	}
	r.files.Close()
}

func (r *Prepared) make() (err error) {
	p, st, files := r.p, &r.st, r.files
	if err := st.checkSchema(); err != nil {
		return err
	}
	if st.Socket != p.cfg.Socket || st.Connect != p.cfg.Connect {
		return fmt.Errorf("state of the socket %.128q, dialled: %t; not of %s: %w", st.Socket, st.Connect, p.cfg.Socket, ErrParcel)
	}
	p.sessions = st.Sessions
	if st.Driver != nil {
		p.driver = *st.Driver
	}
	switch {
	case st.Gone:
		p.last = fmt.Errorf("connection: %w", ErrDisconnected)
	case st.Last != "":
		p.last = errors.New(st.Last)
	}
	if !st.Connect {
		if st.ID == nil {
			return fmt.Errorf("no identity of the socket's file: %w", ErrParcel)
		}
		fd, err := files.Take(st.Listener)
		if err != nil {
			return err
		}
		if p.l, err = unixsock.Adopt(socketConfig(p.cfg), *st.ID, fd); err != nil {
			return fmt.Errorf("%w: %w", ErrParcel, socketError(err))
		}
	}
	if st.Waiting != "" {
		fd, err := files.Take(st.Waiting)
		if err != nil {
			return err
		}
		if r.waiting, err = user.AdoptConn(fd); err != nil {
			return fmt.Errorf("file %.64q: %w", st.Waiting, err)
		}
	}
	if st.FrontEnd == nil {
		return nil
	}
	switch {
	case st.Pending == "", st.Step == stepBegun, st.Step == stepDone && st.Bytes > 0:
	default: // nobody takes its connection, which ends with the rest
		p.remember(st.FrontEnd)
		what := "was half done when the process before ended"
		if st.Step == stepAgain {
			what = "has ended two processes"
		}
		p.last = fmt.Errorf("%.32q %s: %w", st.Pending, what, ErrHalfDone)
		return nil
	}
	r.session, err = user.PrepareSession(p.sessionConfig(p.sessions), st.FrontEnd, files)
	if err != nil || st.Pending == "" {
		return err
	}
	p.journal.goOn(st)
	if st.Step == stepBegun {
		r.session.Again()
		return nil
	}
	return r.session.Owe(st.Pending, user.Answer{At: st.At, Bytes: st.Bytes})
}
