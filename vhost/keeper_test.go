package vhost_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
)

// fakeKeeper keeps, and can be where a port dies: its process goes on to exist, but does nothing any more.
type fakeKeeper struct {
	t testing.TB

	mu     sync.Mutex
	files  map[string]int
	state  []byte
	notes  int
	calls  int
	dieAt  int           // the call that does not return, after it was done; 0: none
	dead   chan struct{} // closed then
	revive chan struct{} // closed when it may return after all
	fail   error
	closed bool
}

func newFakeKeeper(t testing.TB) *fakeKeeper {
	k := &fakeKeeper{t: t, files: map[string]int{}, dead: make(chan struct{}), revive: make(chan struct{})}
	t.Cleanup(k.clear)
	return k
}

func (k *fakeKeeper) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, fd := range k.files {
		_ = unix.Close(fd)
		delete(k.files, name)
	}
}

func (k *fakeKeeper) Put(name string, fd int) error {
	return k.call(func() {
		if _, ok := k.files[name]; ok {
			return
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			k.t.Error(err)
			return
		}
		k.files[name] = dup
	})
}

func (k *fakeKeeper) Drop(name string) error {
	return k.call(func() {
		if bytes.Contains(k.state, []byte(`"`+name+`"`)) {
			k.t.Errorf("%s is dropped and still in the state %s", name, k.state)
		}
		if fd, ok := k.files[name]; ok {
			_ = unix.Close(fd)
			delete(k.files, name)
		}
	})
}

func (k *fakeKeeper) Note(state []byte) error {
	return k.call(func() {
		k.notes++
		k.state = bytes.Clone(state)
		if state == nil {
			return
		}
		st, err := vhost.ReadPortState(state)
		if err != nil {
			k.t.Errorf("%v: %s", err, state)
		}
		if st.Pending != "" || k.fail != nil {
			return
		}
		for _, name := range filesOf(&st) {
			if _, ok := k.files[name]; !ok {
				k.t.Errorf("%s is in the state and not kept", name)
			}
		}
	})
}

func (k *fakeKeeper) call(fn func()) error {
	k.mu.Lock()
	if k.closed { // the test has an heir by now
		k.mu.Unlock()
		return nil
	}
	if k.fail != nil {
		defer k.mu.Unlock()
		return k.fail
	}
	fn()
	k.calls++
	die := k.calls == k.dieAt
	if die {
		close(k.dead)
		k.closed = true
	}
	k.mu.Unlock()
	if die {
		<-k.revive
	}
	return nil
}

// inherit returns what an heir gets.
func (k *fakeKeeper) inherit() parcel {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := parcel{state: k.state}
	for name, fd := range k.files {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			k.t.Fatal(err)
		}
		c.files = append(c.files, vhost.NamedFile{Name: name, FD: dup})
	}
	return c
}

// filesOf are the names of the files in a state.
func filesOf(st *vhost.PortState) (names []string) {
	add := func(list ...string) {
		for _, name := range list {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	add(st.Listener, st.Waiting)
	if f := st.FrontEnd; f != nil {
		add(f.Connection, f.Answers)
		for _, r := range f.Memory {
			add(r.File)
		}
		for _, r := range f.Rings {
			add(r.Kick, r.Call, r.Err)
		}
	}
	return names
}

// What a keeper has is what is there: no more once the connection has ended, nothing once the port is closed.
func TestAKeeperHasWhatIsUsed(t *testing.T) {
	k := newFakeKeeper(t)
	p, cfg, log := newHeritable(t, func(c *vhost.Config) { c.Keep = k })
	for round := range 3 {
		s := newScripted(t, cfg.Socket)
		for _, st := range everyHandler() {
			if s.play([]step{st}) != 1 {
				t.Fatal(<-log.stopped)
			}
			c := k.inherit()
			st, err := vhost.ReadPortState(c.state)
			if err != nil {
				t.Fatal(err)
			}
			var have []string
			for _, f := range c.files {
				have = append(have, f.Name)
			}
			want := filesOf(&st)
			slices.Sort(have)
			slices.Sort(want)
			if !slices.Equal(have, want) {
				t.Fatalf("round %d: keeps %v, used are %v", round, have, want)
			}
			user.CloseFiles(c.files)
		}
		s.close()
		<-log.stopped
		if c := k.inherit(); len(c.files) != 1 || c.files[0].Name != "listener" || bytes.Contains(c.state, []byte("front_end")) {
			t.Errorf("after the connection: %v, %s", c.files, c.state)
		} else {
			user.CloseFiles(c.files)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if c := k.inherit(); len(c.files) != 0 || c.state != nil {
		t.Errorf("after the port: %v, %s", c.files, c.state)
	}
}

// A message that changes nothing costs two notes of the state as it was.
func TestAQuestionCostsAKeeperThreeNotes(t *testing.T) {
	k := newFakeKeeper(t)
	_, cfg, _ := newHeritable(t, func(c *vhost.Config) { c.Keep = k })
	c := raw(t, cfg.Socket)
	ask := func() {
		if _, err := c.Write(message(user.GetFeatures, 1, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, user.HeaderSize+8)); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	k.mu.Lock()
	notes, calls := k.notes, k.calls
	k.mu.Unlock()
	ask()
	waitFor(t, "the last note", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.calls >= calls+3 && !bytes.Contains(k.state, []byte("pending"))
	})
	if k.calls-calls > 4 || k.notes-notes != k.calls-calls {
		t.Errorf("%d calls, %d notes", k.calls-calls, k.notes-notes)
	}
}

// A front-end that hears that its descriptor was taken may rely on it: the keeper has it by then.
func TestADescriptorIsKeptBeforeTheReply(t *testing.T) {
	k := newFakeKeeper(t)
	_, cfg, log := newHeritable(t, func(c *vhost.Config) { c.Keep = k })
	c := raw(t, cfg.Socket)
	if _, err := c.Write(message(user.SetProtocolFeatures, 1, user.AppendU64(nil, 1<<user.ProtoReplyAck))); err != nil {
		t.Fatal(err)
	}
	quiet := func() (calls int) {
		waitFor(t, "the note of it", func() bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			calls = k.calls
			return bytes.Contains(k.state, []byte(`"protocol":8`)) && !bytes.Contains(k.state, []byte("pending"))
		})
		return calls
	}
	calls := quiet()
	k.mu.Lock()
	k.dieAt = calls + 2 // after that the message is pending
	k.mu.Unlock()
	e, err := user.NewEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	m := message(user.SetVringCall, user.FlagVersion|user.FlagNeedReply, user.AppendU64(nil, 0))
	if _, _, err := c.WriteMsgUnix(m, unix.UnixRights(e.FD()), nil); err != nil {
		t.Fatal(err)
	}
	<-k.dead
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a reply before the descriptor is kept: %d bytes, %v", n, err)
	}
	k.mu.Lock()
	if _, ok := k.files["call-0-1-1"]; !ok {
		t.Errorf("kept are %v", k.files)
	}
	k.mu.Unlock()
	close(k.revive)
	_ = c.Close()
	<-log.stopped
}

// A keeper that fails is logged, and the guest is served.
func TestAKeeperThatFailsCostsOnlyTheHeir(t *testing.T) {
	k := newFakeKeeper(t)
	k.fail = errors.New("fake keeper: full")
	p, cfg, log := newHeritable(t, func(c *vhost.Config) { c.Keep = k })
	g := newGuest(t, cfg.Socket, nil).start()
	exchange(t, p, g, 0)
	if !log.has("fake keeper: full") {
		t.Error("not logged")
	}
}

// Whoever is thrown out sees that, also where the keeper does not let go of the connection.
func TestAThrownOutFrontEndSeesItWhateverIsKept(t *testing.T) {
	k := newFakeKeeper(t)
	_, cfg, log := newHeritable(t, func(c *vhost.Config) { c.Keep = k })
	c := raw(t, cfg.Socket)
	waitFor(t, "the connection is kept", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		_, ok := k.files["connection-1"]
		return ok
	})
	k.mu.Lock()
	k.fail = errors.New("fake keeper: gone")
	k.mu.Unlock()
	if _, err := c.Write(make([]byte, user.HeaderSize)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if reason := <-log.stopped; !errors.Is(reason, user.ErrBadHeader) {
		t.Errorf("reason %v", reason)
	}
}

// The process dies at every call of its keeper in turn, through a whole life of a front-end: what was told last makes a port that
// goes on with the same connection. Only before there is a note with it, the front-end comes again.
func TestAProcessMayDieAtEveryCallOfItsKeeper(t *testing.T) {
	script := everyHandler()
	stride := 5 // each of a message's calls comes up
	if testing.Short() {
		stride = 37
	}
	var ends [3]int
	for at := 1; ends[undisturbed] == 0; at += stride {
		t.Run("", func(t *testing.T) { ends[dieAndGoOn(t, at, script)]++ })
		if t.Failed() {
			t.Fatalf("at call %d", at)
		}
	}
	if ends[wentOn] < 3 || ends[cameAgain] < 1 {
		t.Error("a script with too few calls")
	}
	t.Logf("%d connections went on, %d were made again", ends[wentOn], ends[cameAgain])
}

// What becomes of a front-end.
const (
	wentOn = iota
	cameAgain
	undisturbed
)

// dieAndGoOn plays a script until the port dies, lets an heir go on, and plays the rest.
func dieAndGoOn(t *testing.T, at int, script []step) int {
	k := newFakeKeeper(t)
	k.dieAt = at
	var cfg vhost.Config
	ports := make(chan *vhost.Port, 1)
	configs := make(chan vhost.Config, 1)
	go func() { // a keeper may not let NewPort return
		p, _, _ := newPort(t, func(c *vhost.Config) {
			c.Keep = k
			configs <- *c
		})
		ports <- p
	}()
	cfg = <-configs
	var p *vhost.Port
	defer func() { // the dead one can end then
		close(k.revive)
		if p == nil {
			<-ports
		}
	}()
	var s *scripted
	served := make(chan int, 1)
	died := false
	select {
	case <-k.dead:
		died = true
	case p = <-ports:
		s = newScripted(t, cfg.Socket)
		defer s.close()
		go func() { served <- s.play(script) }()
		select {
		case <-k.dead:
			died = true
		case n := <-served:
			if n != len(script) {
				t.Fatalf("thrown out after %d steps: %s", n, p.State().Reason)
			}
			served <- n
			s.close()
			select {
			case <-k.dead:
				died = true
			case <-time.After(100 * time.Millisecond): // there are no more calls
			}
		}
		p.HaltIntake()
	}
	if !died {
		return undisturbed
	}
	c := k.inherit()
	k.clear() // the heir has them
	if c.state == nil {
		user.CloseFiles(c.files)
		return cameAgain // before the first note there is nothing to go on with, and nobody
	}
	cfg.Keep = newFakeKeeper(t)
	cfg.Hooks = vhost.Hooks{}
	heir, err := c.unpack(cfg)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.state)
	}
	defer heir.Close()
	if s == nil {
		s = newScripted(t, cfg.Socket)
		defer s.close()
		served <- s.play(script)
	}
	n := <-served
	if n == len(script) {
		return wentOn
	}
	if bytes.Contains(c.state, []byte("front_end")) {
		t.Errorf("thrown out after %d steps: %s: of the state %s", n, heir.State().Reason, c.state)
	}
	next := newScripted(t, cfg.Socket) // as a front-end does that has lost its connection
	defer next.close()
	if n := next.play(script); n != len(script) {
		t.Errorf("the next connection: %d steps: %s", n, heir.State().Reason)
	}
	return cameAgain
}
