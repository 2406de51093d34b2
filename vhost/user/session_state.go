package user

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// SessionState is what a session has learnt, for another one to go on with the same
// connection. Files are named as those that State returns beside it.
type SessionState struct {
	Connection string        `json:"connection"` // file: the stream socket
	PeerPID    int           `json:"peer_pid"`   // for readers
	Negotiated bool          `json:"negotiated"` // SET_FEATURES was seen
	Features   uint64        `json:"features"`   // virtio feature bits, PROTOCOL_FEATURES left out
	Protocol   uint64        `json:"protocol"`   // protocol feature bits
	MTU        int           `json:"mtu,omitempty"`
	Refused    string        `json:"refused,omitempty"` // why the front-end will get no further, in words
	Refusals   int           `json:"refusals,omitempty"`
	Status     uint8         `json:"status"`
	Memory     []RegionState `json:"memory,omitempty"`
	Answers    string        `json:"answers,omitempty"` // file: what answers are sent from
	Removed    []RegionState `json:"removed,omitempty"` // regions taken away, which the front-end may take away again
	Rings      []RingState   `json:"rings,omitempty"`   // those of which anything was said
}

// RegionState is a region of guest memory. Addresses and sizes are in bytes.
type RegionState struct {
	GPA    uint64 `json:"gpa"`
	Size   uint64 `json:"size"`
	UVA    uint64 `json:"uva"`
	Offset uint64 `json:"offset,omitempty"` // in the file
	File   string `json:"file,omitempty"`
}

// RingState is what is known of a virtqueue: RX of pair p is 2p, TX 2p+1.
type RingState struct {
	Index   int       `json:"index"`
	Num     int       `json:"num,omitempty"`  // descriptors, 0: not said
	Base    uint32    `json:"base,omitempty"` // as GET_VRING_BASE tells it; a ring that runs goes on at used.idx
	Lost    int       `json:"lost,omitempty"` // chains behind used.idx that the front-end's base left behind
	Addr    *RingAddr `json:"addr,omitempty"`
	Kicked  bool      `json:"kicked,omitempty"` // SET_VRING_KICK was seen: with all else known, the ring runs
	Enabled bool      `json:"enabled,omitempty"`
	Kick    string    `json:"kick,omitempty"` // files: eventfds
	Call    string    `json:"call,omitempty"`
	Err     string    `json:"err,omitempty"`
}

// RingAddr is where a ring lies, in the front-end's address space.
type RingAddr struct {
	Desc  uint64 `json:"desc"`
	Avail uint64 `json:"avail"`
	Used  uint64 `json:"used"`
	Flags uint32 `json:"flags,omitempty"`
	Log   uint64 `json:"log,omitempty"`
}

// State returns what the session has learnt and its files, which stay the session's.
// For the goroutine that calls Run, between two calls of it, and from Journal.
func (s *Session) State() (st SessionState, files []NamedFile) {
	add := func(name string, fd int) string {
		files = append(files, NamedFile{name, fd})
		return name
	}
	st = SessionState{
		Connection: add(fmt.Sprintf("connection-%d", s.cfg.Serial), s.conn.fd()), PeerPID: s.Info().PeerPID,
		Negotiated: s.negotiated, Features: uint64(s.features), Protocol: uint64(s.protocol),
		MTU: s.mtu, Refused: s.refused, Refusals: s.refusals, Status: s.status,
	}
	if s.answers != nil && s.answers.fd >= 0 {
		st.Answers = add(fmt.Sprintf("answers-%d", s.cfg.Serial), s.answers.fd)
	}
	named := map[string]bool{}
	for _, r := range s.mem.Regions() {
		name := memoryName(r)
		if !named[name] { // the same bytes may be shown at two guest addresses
			named[name] = true
			files = append(files, NamedFile{name, r.FD})
		}
		st.Memory = append(st.Memory, RegionState{GPA: r.GPA, Size: r.Size, UVA: r.UVA, Offset: r.Offset, File: name})
	}
	for _, r := range s.removed {
		st.Removed = append(st.Removed, RegionState{GPA: r.GPA, Size: r.Size, UVA: r.UVA})
	}
	for i := range s.rings {
		r := &s.rings[i]
		rs := RingState{Index: i, Num: r.num, Base: r.base.Num(), Lost: r.lost, Kicked: r.kicked, Enabled: r.enabled}
		if r.hasAddr {
			rs.Addr = &RingAddr{Desc: r.addr.Desc, Avail: r.addr.Avail, Used: r.addr.Used, Flags: r.addr.Flags, Log: r.addr.LogOffset}
		}
		for _, e := range []struct {
			name  *string
			kind  string
			event *EventFD
		}{{&rs.Kick, "kick", r.kick}, {&rs.Call, "call", r.call}, {&rs.Err, "err", r.err}} {
			if e.event != nil {
				*e.name = add(fmt.Sprintf("%s-%d-%d-%d", e.kind, i, s.cfg.Serial, e.event.serial), e.event.fd)
			}
		}
		if rs != (RingState{Index: i}) {
			st.Rings = append(st.Rings, rs)
		}
	}
	return st, files
}

// memoryName is the name of the file of a mapped region. No other region that is mapped has it, now or later.
func memoryName(r guestmem.Region) string {
	return fmt.Sprintf("memory-%x-%x-%x-%x", r.Dev, r.Ino, r.Offset, r.Size)
}

// Freeze stops every ring, so that State stays true; the device hears of it as of
// every stop. On an error the session goes on as before, or ends with the next Run
// where it cannot. Call it when Run has returned ErrPaused.
func (s *Session) Freeze() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer s.broken(&err)
	s.begin("hand-over")
	defer s.work.Store(nil)
	s.dev.BeforeChange(false)
	for i := range s.rings {
		if !s.rings[i].running {
			continue
		}
		if err := s.stopRing(i); err != nil {
			return errors.Join(err, s.Thaw())
		}
		s.rings[i].frozen = true
	}
	return nil
}

// Thaw undoes Freeze. An error means that the session ends with the next Run.
func (s *Session) Thaw() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer s.broken(&err)
	for i := range s.rings {
		if !s.rings[i].frozen {
			continue
		}
		s.rings[i].frozen = false
		if err := s.startRing(i, s.rejoin); err != nil {
			s.fault = fmt.Errorf("hand-over given up: %w", err)
			return err
		}
	}
	s.publish()
	s.dev.AfterChange()
	return nil
}

// broken is deferred where a mistake of ours must end the session.
func (s *Session) broken(err *error) {
	if r := recover(); r != nil {
		*err = FaultError(r)
		s.fault = *err
	}
}

// Pause makes Run return ErrPaused, between two messages. Safe from any goroutine.
func (s *Session) Pause() { s.conn.Pause() }

// Unpause takes a Pause back. Safe from any goroutine.
func (s *Session) Unpause() { s.conn.Unpause() }

// Leave ends the session after Freeze without a sign to the front-end: whoever has
// duplicates of its files goes on.
func (s *Session) Leave() {
	_ = s.conn.Close()
	for i := range s.rings {
		r := &s.rings[i]
		closeEvents(&r.kick, &r.call, &r.err)
	}
	s.answers.close()
	if err := s.mem.Close(); err != nil {
		s.cfg.Logf("%v", err)
	}
}

// rejoin lets dev go on where a device of ours left the ring, perhaps without a word.
func (s *Session) rejoin(i int, dev vring.Device) (rejoined bool, err error) {
	r := &s.rings[i]
	err = dev.Touch(func() {
		dev.Rejoin(r.lost)
		dev.EnableNotify() // whatever the device before wished
	})
	if err != nil {
		return false, fmt.Errorf("ring %d: %w", i, err)
	}
	r.warn(i)
	return true, nil
}

// PrepareSession makes a session that goes on where another one is, of all but the
// rings: nothing is read from the connection and nothing of a ring is touched, so the
// other may go on meanwhile. Rejoin is the rest, or Abandon. It takes what it needs
// from files, and the connection with an error too. The error wraps ErrParcel where
// the state is at fault.
func PrepareSession(cfg SessionConfig, st *SessionState, files *Files) (*Session, error) {
	fd, err := files.Take(st.Connection)
	if err != nil {
		return nil, err
	}
	conn, err := AdoptConn(fd)
	if err != nil {
		return nil, fmt.Errorf("file %.64q: %w", st.Connection, err)
	}
	s := NewSession(NewConn(conn), cfg)
	if err := s.restore(st, files); err != nil {
		s.Abandon()
		return nil, err
	}
	return s, nil
}

// Rejoin starts the rings, once the session before has stopped them: st is what it
// was then, and differs from what the session was prepared from in the rings' bases
// alone. Then call Resume, and Run. With an error Abandon is all that is left.
func (s *Session) Rejoin(st *SessionState) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	for i := range st.Rings {
		base, err := vring.ParseBase(s.features, st.Rings[i].Base)
		if err != nil || st.Rings[i].Index < 0 || st.Rings[i].Index >= len(s.rings) {
			return fmt.Errorf("ring %d, base %d: %w: %w", st.Rings[i].Index, st.Rings[i].Base, ErrParcel, err)
		}
		s.rings[st.Rings[i].Index].base = base
	}
	for i := range s.rings {
		if !s.ready(i) {
			continue
		}
		if err := s.startRing(i, s.rejoin); err != nil {
			return fmt.Errorf("%w: %w", ErrParcel, err)
		}
	}
	s.publish()
	return nil
}

// Resume tells the device that rings run. On the goroutine that will call Run, before it.
func (s *Session) Resume() {
	var err error
	defer s.broken(&err) // Run has it
	s.dev.AfterChange()
}

// Abandon lets go of everything, without a sign to the front-end, which may have
// another session.
func (s *Session) Abandon() {
	for i := range s.rings {
		if s.rings[i].running {
			if err := s.stopRing(i); err != nil {
				s.cfg.Logf("ring %d: %v", i, err)
			}
		}
	}
	s.Leave()
}

func (s *Session) restore(st *SessionState, files *Files) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	f := virtio.Features(st.Features)
	if extra := f &^ s.cfg.Features; extra != 0 {
		return fmt.Errorf("features %v: %w: %w", extra.Names(), ErrParcel, ErrFeatures)
	}
	if err := f.Check(); err != nil {
		return fmt.Errorf("features: %w: %w", ErrParcel, err)
	}
	if extra := ProtocolFeatures(st.Protocol) &^ s.cfg.Protocol; extra != 0 {
		return fmt.Errorf("protocol features %#x: %w: %w", uint64(extra), ErrParcel, ErrFeatures)
	}
	switch {
	case st.MTU < 0 || st.MTU > largestMTU:
		return fmt.Errorf("MTU %d: %w", st.MTU, ErrParcel)
	case st.Refusals < 0:
		return fmt.Errorf("%d refusals: %w", st.Refusals, ErrParcel)
	case len(st.Memory) > guestmem.MaxRegions || len(st.Removed) > guestmem.MaxRegions:
		return fmt.Errorf("%d regions, %d removed: %w", len(st.Memory), len(st.Removed), ErrParcel)
	}
	s.features, s.negotiated, s.protocol = f, st.Negotiated, ProtocolFeatures(st.Protocol)
	s.mtu, s.refused, s.refusals, s.status = st.MTU, st.Refused, st.Refusals, st.Status
	for _, r := range st.Removed {
		s.removed = append(s.removed, MemRegion{GPA: r.GPA, Size: r.Size, UVA: r.UVA})
	}
	if err := s.restoreMemory(st.Memory, files); err != nil {
		return err
	}
	if err := s.restoreAnswers(st.Answers, files); err != nil {
		return err
	}
	for i := range st.Rings {
		if err := s.restoreRing(&st.Rings[i], files); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) restoreMemory(memory []RegionState, files *Files) error {
	if len(memory) == 0 {
		return nil
	}
	regions := make([]guestmem.Region, len(memory))
	for i, r := range memory {
		fd, err := files.Borrow(r.File)
		if err != nil {
			return err
		}
		regions[i] = guestmem.Region{GPA: r.GPA, Size: r.Size, UVA: r.UVA, Offset: r.Offset, FD: fd}
	}
	table, err := s.mem.Replace(regions)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrParcel, err)
	}
	_ = s.mem.Close() // empty
	s.mem = table
	is := map[uint64]string{}
	for _, r := range table.Regions() {
		is[r.GPA] = memoryName(r)
	}
	for _, r := range memory {
		if is[r.GPA] != r.File {
			return fmt.Errorf("file %.64q is another file by now, %s: %w", r.File, is[r.GPA], ErrParcel)
		}
	}
	return nil
}

func (s *Session) restoreRing(st *RingState, files *Files) error {
	if st.Index < 0 || st.Index >= len(s.rings) {
		return fmt.Errorf("ring %d of %d: %w", st.Index, len(s.rings), ErrParcel)
	}
	r := &s.rings[st.Index]
	if r.told() {
		return fmt.Errorf("ring %d comes twice: %w", st.Index, ErrParcel)
	}
	base, err := vring.ParseBase(s.features, st.Base)
	if err != nil {
		return fmt.Errorf("ring %d, base %d: %w: %w", st.Index, st.Base, ErrParcel, err)
	}
	if st.Num < 0 || st.Num > vring.MaxSize || st.Num > 0 && !vring.ValidSize(s.features, st.Num) || st.Lost < 0 || st.Lost > st.Num {
		return fmt.Errorf("ring %d: size %d, %d lost: %w", st.Index, st.Num, st.Lost, ErrParcel)
	}
	if st.Kicked != (st.Kick != "") {
		return fmt.Errorf("ring %d: kicked without a file, or the other way round: %w", st.Index, ErrParcel)
	}
	r.num, r.base, r.lost, r.kicked, r.enabled = st.Num, base, st.Lost, st.Kicked, st.Enabled
	if a := st.Addr; a != nil {
		r.addr = VringAddr{Index: uint32(st.Index), Flags: a.Flags, Desc: a.Desc, Used: a.Used, Avail: a.Avail, LogOffset: a.Log}
		r.hasAddr = true
	}
	for _, e := range []struct {
		name  string
		event **EventFD
		adopt func(int) (*EventFD, error)
	}{{st.Kick, &r.kick, AdoptKick}, {st.Call, &r.call, AdoptEventFD}, {st.Err, &r.err, AdoptEventFD}} {
		if e.name == "" {
			continue
		}
		fd, err := files.Take(e.name)
		if err != nil {
			return fmt.Errorf("ring %d: %w", st.Index, err)
		}
		if *e.event, err = e.adopt(fd); err != nil {
			return fmt.Errorf("ring %d: file %.64q: %w: %w", st.Index, e.name, ErrParcel, err)
		}
		(*e.event).serial = serialOf(e.name)
		s.serial = max(s.serial, (*e.event).serial)
	}
	return nil
}

// serialOf is the number at the end of an eventfd's name; 0 for a name that State does not make.
func serialOf(name string) uint64 {
	n, _ := strconv.ParseUint(name[strings.LastIndexByte(name, '-')+1:], 10, 63)
	return n
}
