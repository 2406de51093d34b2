package vhost

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/rscctl/rscctl/vhost/unixsock"
	"github.com/rscctl/rscctl/vhost/user"
)

// PortSchema is the version of PortState that this package writes. It reads this one.
const PortSchema = 1

// NamedFile is an open file of a port, with the name that PortState has for it.
type NamedFile = user.NamedFile

// PortState is all that a Port of another process needs beside its files to go on
// where this one is. As JSON it says what is what; names that a reader does not know
// are no trouble to it, and a writer that makes older readers wrong raises Schema.
type PortState struct {
	Schema   int                `json:"schema"` // PortSchema
	Name     string             `json:"name"`   // for readers
	Socket   string             `json:"socket"`
	Connect  bool               `json:"connect,omitempty"`  // the socket is dialled
	Listener string             `json:"listener,omitempty"` // file: the listening socket
	ID       *unixsock.FileID   `json:"file,omitempty"`     // of the socket's file
	Waiting  string             `json:"waiting,omitempty"`  // file: a connection that was accepted, of which nothing was read
	Sessions uint64             `json:"sessions"`           // front-ends so far
	Last     string             `json:"last,omitempty"`     // why the last one went, when none is there
	Gone     bool               `json:"gone,omitempty"`     // it went by itself
	Counters map[string]uint64  `json:"counters"`           // of the port; see Counters.Named
	FrontEnd *user.SessionState `json:"front_end,omitempty"`
	Driver   *user.Driver       `json:"driver,omitempty"` // of the guest of the connection before
	// Pending is the request that is being dealt with, and Step how far that is. The message is in the socket, but for a
	// step that this version does not know, as "" of versions before: nobody can tell then what the front-end believes of it.
	Pending string `json:"pending,omitempty"`
	Step    string `json:"step,omitempty"`
	At      int    `json:"at,omitempty"`    // where the answer is, if one follows, in the file of answers of FrontEnd
	Bytes   int    `json:"bytes,omitempty"` // its length
}

// Steps of a message.
const (
	stepBegun = "begun" // the rest of the state is from before it
	stepAgain = "again" // likewise, and the process before did not come further: perhaps the message is what ends us
	stepDone  = "done"  // the rest is from after it; the answer may be sent, as the file's position says, and the message be off the socket
)

// ReadPortState reads a state as JSON. The errors are ErrNewer and ErrParcel.
func ReadPortState(b []byte) (PortState, error) {
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return PortState{}, fmt.Errorf("port state: %w: %w", ErrParcel, err)
	}
	st := PortState{Schema: version.Schema}
	if err := st.checkSchema(); err != nil {
		return PortState{}, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return PortState{}, fmt.Errorf("port state: %w: %w", ErrParcel, err)
	}
	return st, nil
}

func (st *PortState) checkSchema() error {
	switch {
	case st.Schema > PortSchema:
		return fmt.Errorf("port state: version %d, this binary knows %d: %w", st.Schema, PortSchema, ErrNewer)
	case st.Schema < 1:
		return fmt.Errorf("port state: version %d: %w", st.Schema, ErrParcel)
	}
	return nil
}

// state returns what the port and its session, unless nil, are, and the files of both, which stay theirs. The listener is no file
// of it.
func (p *Port) state(s *user.Session) (st PortState, files []NamedFile) {
	c := p.Counters()
	st = PortState{Schema: PortSchema, Name: p.cfg.Name, Socket: p.cfg.Socket, Connect: p.cfg.Connect, Counters: c.all()}
	if p.l != nil {
		id := p.l.ID()
		st.ID, st.Listener = &id, listenerFile
	}
	p.mu.Lock()
	st.Sessions = p.sessions
	if p.last != nil && s == nil {
		st.Last, st.Gone = p.last.Error(), errors.Is(p.last, ErrDisconnected)
	}
	p.mu.Unlock()
	if p.driver.Known() {
		st.Driver = &p.driver
	}
	if s != nil {
		var session user.SessionState
		session, files = s.State()
		st.FrontEnd = &session
	}
	return st, files
}

// Names of files beside the session's.
const (
	listenerFile = "listener"
	waitingFile  = "waiting"
)

const dropPrefix = "tx_dropped_"

// all are the counters by their names in PortState.Counters.
func (c *Counters) all() map[string]uint64 {
	out := c.Named()
	for name, n := range c.TxDropped {
		out[dropPrefix+name] = n
	}
	return out
}

// carry makes the counters go on from st's.
func (p *Port) carry(st *PortState) {
	for i := range numCounters {
		var one [numCounters]uint64
		one[i] = 1
		c := named(&one)
		for name, n := range c.all() {
			if n == 1 {
				p.carried[i] = st.Counters[name]
			}
		}
	}
	p.faults.Store(st.Counters["faults"])
}
