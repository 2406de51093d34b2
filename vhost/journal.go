package vhost

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/rscctl/rscctl/vhost/user"
)

// Keeper keeps what outlives a port's process, so that Unpack can go on after a
// crash: its descriptors, and its state as JSON. Systemd's descriptor store is one, with
// the state in a memfd. Its methods are called by one goroutine at a time, mostly while
// a front-end waits: they must return within a short bound.
//
// An error is logged, and the port goes on. What the keeper has is then perhaps not what
// is true: Unpack refuses what misses a file.
type Keeper interface {
	// Put keeps a duplicate of fd, which stays the caller's. A name that is kept already is
	// the same file's.
	Put(name string, fd int) error
	// Drop closes what Put keeps. A name that is not kept is no error.
	Drop(name string) error
	// Note replaces the state: JSON of a PortState, for ReadPortState. Its files are all
	// kept. nil: the port is closed, and what is kept is dropped next.
	Note(state []byte) error
}

// journal tells a Keeper what it has to know, in an order in which a crash finds it with a state that is true and whose files are
// there, or that says how far a message is. Nil tells nobody. It belongs to the goroutine that starts, serves or ends the
// port.
type journal struct {
	p    *Port
	keep Keeper
	s    *user.Session   // whose messages are served; nil for none
	held map[string]bool // put, and not dropped; false: perhaps
	last []byte          // the state, as of the last message that was dealt with

	step    []byte // the message that is dealt with, and how far that is, as fields behind the state; empty: none is
	pending string // its request
	again   bool   // it is what the process before has begun
}

func newJournal(p *Port, k Keeper) *journal { return &journal{p: p, keep: k, held: map[string]bool{}} }

// adopt: the keeper has perhaps kept these since the process before. What of them is still used is put again, and the rest is dropped.
func (j *journal) adopt(files []NamedFile) {
	for _, f := range files {
		j.held[f.Name] = false
	}
}

// note tells the state, with the session's, unless nil.
func (j *journal) note(s *user.Session) {
	if j == nil {
		return
	}
	j.s = s
	if s == nil {
		j.step, j.again = nil, false
	}
	files := j.state()
	j.tell()
	j.dropBut(files)
}

// state makes the state that is told next, and keeps what is in it.
func (j *journal) state() []NamedFile {
	st, files := j.put()
	b, err := json.Marshal(st)
	if err != nil { // no state that we make
		j.p.logf("journal: %v", err)
		return files
	}
	j.last = b
	return files
}

// put gives the keeper what it does not have.
func (j *journal) put() (PortState, []NamedFile) {
	st, files := j.p.state(j.s)
	if l := j.p.l; l != nil && !j.held[listenerFile] {
		if fd, err := l.Dup(); err == nil {
			j.putOne(NamedFile{Name: listenerFile, FD: fd})
			user.CloseFiles([]NamedFile{{FD: fd}})
		}
	}
	for _, f := range files {
		if !j.held[f.Name] {
			j.putOne(f)
		}
	}
	return st, files
}

func (j *journal) putOne(f NamedFile) {
	if err := j.keep.Put(f.Name, f.FD); err != nil {
		j.p.logf("journal: keep %s: %v", f.Name, err)
		return
	}
	j.held[f.Name] = true
}

// dropBut drops what is kept for nothing: beside files and the listener.
func (j *journal) dropBut(files []NamedFile) {
	for _, name := range slices.Sorted(maps.Keys(j.held)) {
		if name != listenerFile && !slices.ContainsFunc(files, func(f NamedFile) bool { return f.Name == name }) {
			j.drop(name)
		}
	}
}

func (j *journal) drop(name string) {
	if err := j.keep.Drop(name); err != nil {
		j.p.logf("journal: drop %s: %v", name, err)
	}
	delete(j.held, name)
}

// tell tells the state, and behind it the message that is dealt with.
func (j *journal) tell() {
	n := len(j.last)
	b := append(make([]byte, 0, n+len(j.step)), j.last[:n-1]...)
	b = append(b, j.step...)
	j.write(append(b, '}'))
}

func (j *journal) write(state []byte) {
	if err := j.keep.Note(state); err != nil {
		j.p.logf("journal: %v", err)
	}
}

// Begin is cheap: the state is what it was, and the request behind it.
func (j *journal) Begin(r user.Request) {
	step := stepBegun
	if j.again {
		step, j.again = stepAgain, false
	}
	j.pending = r.String()
	j.at(step, user.Answer{})
	j.tell()
}

// Done: what the front-end may rely on is kept before it hears so.
func (j *journal) Done(changed bool, a user.Answer) {
	var files []NamedFile
	if changed {
		files = j.state()
	}
	j.step = nil
	if a.Bytes > 0 {
		j.at(stepDone, a)
	}
	j.tell()
	if changed {
		j.dropBut(files)
	}
}

func (j *journal) End() {
	j.step = nil
	j.tell()
}

// goOn: the process before was dealing with a message, and this one, or one after it, comes to its end.
func (j *journal) goOn(st *PortState) {
	if j == nil || st.Pending == "" {
		return
	}
	j.pending, j.again = st.Pending, st.Step == stepBegun
	j.at(st.Step, user.Answer{At: st.At, Bytes: st.Bytes})
}

// at is how far the message is that is dealt with.
func (j *journal) at(step string, a user.Answer) {
	j.step = fmt.Appendf(nil, `,"pending":%q,"step":%q`, j.pending, step)
	if a.Bytes > 0 {
		j.step = fmt.Appendf(j.step, `,"at":%d,"bytes":%d`, a.At, a.Bytes)
	}
}

// forget tells the keeper that there is nothing to keep.
func (j *journal) forget() {
	if j == nil {
		return
	}
	j.write(nil)
	for _, name := range slices.Sorted(maps.Keys(j.held)) {
		j.drop(name)
	}
}
