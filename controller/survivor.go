package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
)

// Rooms of notes, in bytes; what is not written takes no memory.
const (
	stateRoom = 16 << 20
	portRoom  = 1 << 20
)

// Names in the store: "state-N" is the note of the N-th process, "TAG.x" a descriptor of an uplink or a VM, and "TAG.port.x" one that a
// vhost-user port keeps by itself. A tag belongs to one uplink or VM for as long as it is attached, whichever process serves it: systemd
// keeps a file under one name.
const (
	statePrefix  = "state-"
	portPart     = ".port."
	notePrefix   = "note-"
	memoryPrefix = "mem-" // of guest memory, in "TAG.port.x"; no name of vhost.Port begins so
)

// survivor keeps what the next process needs after a crash of this one, in a store that outlives it. The controller's lock guards
// it, but for what ports keep by themselves.
type survivor struct {
	store   *fdstore.Store
	process int    // see packed.Process
	name    string // of this process's note
	note    *fdstore.Note
	told    string          // the last error that was logged
	known   map[string]bool // what the store has, ports' own left out; true: of use in the state that is being written
}

// stateName is the name of the note of a process.
func stateName(process int) string { return statePrefix + strconv.Itoa(process) }

// newSurvivor begins to keep. serial tells this process's note from those before.
func newSurvivor(s *fdstore.Store, serial int) (*survivor, error) {
	note, err := fdstore.NewNote("rscctl-state", stateRoom)
	if err != nil {
		return nil, err
	}
	return &survivor{store: s, process: serial, name: stateName(serial), note: note, known: map[string]bool{}}, nil
}

// survive begins to keep, where there is a store. The caller holds mu, or is New.
func (c *Controller) survive(process int) (err error) {
	if c.opt.Store != nil {
		c.survivor, err = newSurvivor(c.opt.Store, process)
	}
	return err
}

// surviveHeir keeps anew under the number behind the heir's, which may have kept something in the same store: the newest counts. The
// caller holds mu.
func (c *Controller) surviveHeir(s *packed) error {
	if c.survivor == nil {
		return nil
	}
	old := c.survivor
	if err := c.survive(s.Process + 2); err != nil {
		return err
	}
	// What the heir has dropped is not known: all is put again, and only the notes of before go.
	c.survivor.inherit([]string{stateName(s.Process), stateName(s.Process + 1)})
	return old.note.Close()
}

// forgetHeir drops what the ports of an heir that is no more had kept, and those of this process before it. The caller holds mu.
func (c *Controller) forgetHeir(s *packed) error {
	if c.survivor == nil {
		return nil
	}
	return c.dropStrays(append(s.portNotes(s.Process), s.portNotes(s.Process+1)...))
}

// remember writes what a process after this one needs, should this one die now. The caller holds mu.
func (c *Controller) remember() {
	if c.survivor == nil {
		return
	}
	vms := map[*attachment]*packedVM{}
	var err error
	for _, u := range c.uplinks {
		for _, a := range u.sorted() {
			vms[a] = a.packed()
			err = errors.Join(err, a.kind.keep(a, c.survivor, vms[a]))
		}
	}
	c.stirred = c.moved()
	state, derr := c.describe(c.survivor, vms)
	if err = errors.Join(err, derr); err == nil {
		err = c.survivor.write(c.opt.Version, state)
	}
	told := ""
	if err != nil {
		told = err.Error()
	}
	if told != c.survivor.told && err != nil && !errors.Is(err, net.ErrClosed) { // what is closed is given up: it is the end
		c.log.Error("a crash would end what is attached", "err", err)
	}
	c.survivor.told = told
}

// rememberCounts is remember for what the workers have counted, if they have moved anything: those that sleep are not woken. The caller
// holds mu.
func (c *Controller) rememberCounts() {
	if c.survivor != nil && c.moved() != c.stirred {
		c.remember()
	}
}

// moved changes whenever a worker has moved something.
func (c *Controller) moved() (sum uint64) {
	for _, u := range c.uplinks {
		for _, q := range u.queues {
			sum += q.Activity()
		}
	}
	return sum
}

// leave ends all traffic between two bursts and leaves everything to the process that comes, which finds it in the store. It reports
// false when that cannot be. The process must end.
func (c *Controller) leave() bool {
	c.hush("the controller starts anew: start it again then")
	c.mu.Lock()
	if c.survivor == nil {
		c.mu.Unlock()
		return false
	}
	_ = c.listener.SetDeadline(time.Now()) // who connects from here on is the next one's
	c.remember()
	p, left, _, err := c.pack()
	if err != nil {
		c.log.Error("not left to the next process", "err", err)
		_ = c.listener.SetDeadline(time.Time{})
		c.mu.Unlock()
		return false
	}
	c.log.Info("left to the next process")
	c.release(left)
	p.Close()
	return true // with mu held: nothing here is this process's any more
}

// Recover goes on where a process that died, or left, stood: with what it had kept in opt.Store. files are the descriptors that this process
// inherited, which are taken over. With an error nothing of it is used, and the store is empty.
func Recover(opt Options, files map[string]int) (c *Controller, err error) {
	names := slices.Collect(maps.Keys(files))
	c = newController(opt)
	p := parcel.New("")
	defer p.Close()
	var s packed
	process, err := recovered(p, files)
	if err == nil {
		s, err = readPacked(p)
	}
	if err == nil {
		c.watcher, err = netdev.NewWatcher()
	}
	if err == nil {
		s.Process, s.Kept, s.Store = process, names, opt.Store.Path()
		c.mu.Lock()
		err = c.goOn(p, &s, eachForItself, func() {})
		c.mu.Unlock()
	}
	if err != nil {
		if c.survivor != nil { // it may have begun to keep
			err = errors.Join(err, c.survivor.forget())
		}
		c.leavePlaces()
		for _, name := range append(names, s.portNotes(process+1)...) {
			err = errors.Join(err, opt.Store.Drop(name))
		}
		return nil, fmt.Errorf("recover: %w", err)
	}
	c.inUse()
	return c, nil
}

// inUse tells the store that this process goes on with everything: should it die now, another one is to go on.
func (c *Controller) inUse() {
	if c.opt.Store == nil {
		return
	}
	if err := c.opt.Store.Ready(); err != nil {
		c.log.Warn("service manager", "err", err)
	}
}

// dropStrays drops what ports have kept that are not attached any more, and ports' notes of processes before this one.
func (c *Controller) dropStrays(names []string) (err error) {
	attached := map[string]bool{}
	for _, u := range c.uplinks {
		for _, a := range u.vms {
			attached[a.tag] = true
		}
	}
	now := strconv.Itoa(c.survivor.process)
	for _, name := range strays(names, func(tag string) bool { return attached[tag] }, now) {
		err = errors.Join(err, c.opt.Store.Drop(name))
	}
	return err
}

// keptNames are those that the store has, of what ports keep by themselves their notes alone. The caller holds mu.
func (c *Controller) keptNames() []string {
	names := slices.Sorted(maps.Keys(c.survivor.known))
	for _, u := range c.uplinks {
		for _, a := range u.sorted() {
			names = append(names, portNoteName(a.tag, c.survivor.process))
		}
	}
	return names
}

// forgetPort drops what the port of a VM had kept, when nobody goes on with it: its front-end sees the connection end, and comes again.
func (c *Controller) forgetPort(vm *packedVM) {
	if c.survivor == nil || vm.User == nil {
		return
	}
	for _, name := range slices.AppendSeq(vm.held, maps.Keys(vm.User.Files)) {
		if err := c.opt.Store.Drop(vm.Tag + portPart + name); err != nil {
			c.log.Warn("descriptor store", "vm", vm.VM.Name, "err", err)
		}
	}
}

// inherit notes what the store has from a process before.
func (s *survivor) inherit(names []string) {
	s.store.Has(names...)
	for _, name := range names {
		if !strings.Contains(name, portPart) {
			s.known[name] = false
		}
	}
}

// empty drops all that this process has put into the store. What is still of use is put anew when the state is written next.
func (s *survivor) empty() error {
	clear(s.known)
	return s.store.Empty()
}

// forget empties the store: nothing is to be gone on with.
func (s *survivor) forget() (err error) {
	for name := range s.known {
		err = errors.Join(err, s.store.Drop(name))
	}
	clear(s.known)
	return errors.Join(err, s.note.Close())
}

// Keep implements bag. Names are the caller's: one name is one file.
func (s *survivor) Keep(name string, fd int) (string, error) {
	if _, there := s.known[name]; !there {
		if err := s.store.Put(name, fd); err != nil {
			return "", err
		}
	}
	s.known[name] = true
	return name, nil
}

// write replaces the state, whose descriptors Keep has put in, and drops what it does not name.
func (s *survivor) write(from string, state packed) error {
	body, err := json.Marshal(state)
	if err == nil {
		body, err = json.Marshal(noted{Version: parcel.Version, From: from, State: body})
	}
	if err == nil {
		err = s.note.Write(body)
	}
	if err == nil {
		_, err = s.Keep(s.name, s.note.FD()) // not before something is in it
	}
	if err != nil {
		return fmt.Errorf("kept for a crash: %w", err)
	}
	dropped := false
	for name, used := range s.known {
		if used {
			s.known[name] = false
			continue
		}
		dropped = true
		delete(s.known, name)
		err = errors.Join(err, s.store.Drop(name))
	}
	if dropped { // who attaches next binds to the same queues
		err = errors.Join(err, s.store.Wait())
	}
	return err
}

// noted is a state in a note.
type noted struct {
	Version int             `json:"version"` // as a parcel's
	From    string          `json:"from"`
	State   json.RawMessage `json:"state"`
}

// recovered puts into a parcel what the store has kept of a process that died. The descriptors are taken over. serial is that of its note.
func recovered(p *parcel.Parcel, files map[string]int) (serial int, err error) {
	for name, fd := range files {
		err = errors.Join(err, p.Put(name, fd))
	}
	for _, f := range p.Files() {
		if n, nerr := strconv.Atoi(strings.TrimPrefix(f.Name, statePrefix)); nerr == nil && strings.HasPrefix(f.Name, statePrefix) {
			serial = max(serial, n)
		}
	}
	fd, terr := p.Take(stateName(serial), parcel.Memory)
	if terr != nil {
		return serial, errors.Join(err, terr)
	}
	defer unix.Close(fd)
	body, nerr := fdstore.ReadNote(fd)
	var n noted
	if nerr == nil {
		nerr = json.Unmarshal(body, &n)
	}
	if nerr == nil && n.Version > parcel.Version {
		nerr = fmt.Errorf("form %d of rscctl %s: %w", n.Version, n.From, parcel.ErrNewer)
	}
	p.Version, p.From, p.State = n.Version, n.From, n.State
	return serial, errors.Join(err, nerr)
}

// strays are the names of ports' descriptors whose port is not attached any more, and of their notes but those of this process.
func strays(names []string, attached func(tag string) bool, process string) (out []string) {
	for _, name := range names {
		tag, part, ok := strings.Cut(name, portPart)
		if serial, note := strings.CutPrefix(part, notePrefix); ok && (!attached(tag) || note && serial != process) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
