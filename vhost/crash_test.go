package vhost_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
)

// mortalEnv makes the test's binary a process with a port, to be killed: its value is the port's socket.
const mortalEnv = "RSCCTL_TEST_MORTAL"

func TestMain(m *testing.M) {
	if socket := os.Getenv(mortalEnv); socket != "" {
		err := liveMortally(socket)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Descriptors of a mortal process.
const (
	mortalKeeper = 3 + iota // a socket of packets: see letter
	mortalBook
)

// A letter to or from a keeper is a packet: what it is, and a name or a state, and perhaps a descriptor.
const (
	letterPut  = 'p'
	letterDrop = 'd'
	letterNote = 'n'
)

func sendLetter(fd int, what byte, text []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(fd, append([]byte{what}, text...), oob, nil, 0)
}

// readLetter returns what is 0 at the end.
func readLetter(fd int) (what byte, text []byte, file int, err error) {
	b, oob := make([]byte, 1<<17), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return 0, nil, -1, err
	}
	file = -1
	if blocks, _ := unix.ParseSocketControlMessage(oob[:oobn]); len(blocks) > 0 {
		if fds, _ := unix.ParseUnixRights(&blocks[0]); len(fds) > 0 {
			file = fds[0]
		}
	}
	return b[0], b[1:n], file, nil
}

// postKeeper is a keeper in another process.
type postKeeper struct{}

func (postKeeper) Put(name string, fd int) error {
	return sendLetter(mortalKeeper, letterPut, []byte(name), fd)
}
func (postKeeper) Drop(name string) error  { return sendLetter(mortalKeeper, letterDrop, []byte(name)) }
func (postKeeper) Note(state []byte) error { return sendLetter(mortalKeeper, letterNote, state) }

// liveMortally serves the port that it inherits until somebody kills it.
func liveMortally(socket string) error {
	book, err := mapBook(mortalBook)
	if err != nil {
		return err
	}
	w := newWorker(book, func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	})
	cfg := vhost.Config{Name: "vm", Socket: socket, UID: -1, GID: -1, MaxPairs: 4, Keep: postKeeper{},
		Logf: func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }, Notef: func(string, ...any) {}}
	w.hooks(&cfg.Hooks)
	var c parcel
	for {
		what, text, fd, err := readLetter(mortalKeeper)
		if err != nil || what == 0 {
			return fmt.Errorf("no parcel: %w", err)
		}
		if what == letterNote {
			c.state = text
			break
		}
		c.files = append(c.files, vhost.NamedFile{Name: string(text), FD: fd})
	}
	if len(c.state) == 0 {
		_, err = vhost.NewPort(cfg)
	} else {
		_, err = c.unpack(cfg)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, c.state)
	}
	select {}
}

// mortals are processes with a port, one after the other, and what outlives them.
type mortals struct {
	t      *testing.T
	socket string
	book   *os.File

	files   map[string]int
	state   []byte
	lost    int // states that a front-end cannot go on with
	process *exec.Cmd
	post    int
	ended   chan struct{}
	stderr  bytes.Buffer
}

func (m *mortals) start() {
	m.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	m.process = exec.Command(self)
	m.process.Env = append(os.Environ(), mortalEnv+"="+m.socket)
	m.process.ExtraFiles = []*os.File{theirs, m.book}
	m.process.Stderr = &m.stderr
	if err := m.process.Start(); err != nil {
		m.t.Fatal(err)
	}
	_ = theirs.Close()
	m.post, m.ended = pair[0], make(chan struct{})
	if m.state != nil && (bytes.Contains(m.state, []byte(`"step":"again"`)) || !bytes.Contains(m.state, []byte(`"front_end"`))) {
		m.lost++
	}
	for name, fd := range m.files {
		if err := sendLetter(m.post, letterPut, []byte(name), fd); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := sendLetter(m.post, letterNote, m.state); err != nil {
		m.t.Fatal(err)
	}
	go m.keep()
}

// keep is the keeper of one process, until it has ended and all its letters are read.
func (m *mortals) keep() {
	defer close(m.ended)
	for {
		what, text, fd, err := readLetter(m.post)
		if err != nil || what == 0 {
			return
		}
		switch name := string(text); what {
		case letterPut:
			if old, ok := m.files[name]; ok {
				_ = unix.Close(old)
			}
			m.files[name] = fd
		case letterDrop:
			if fd, ok := m.files[name]; ok {
				_ = unix.Close(fd)
				delete(m.files, name)
			}
		case letterNote:
			m.state = text
		}
	}
}

// kill ends the process at once.
func (m *mortals) kill() {
	m.t.Helper()
	_ = m.process.Process.Kill()
	_ = m.process.Wait()
	<-m.ended
	_ = unix.Close(m.post)
	if s := m.stderr.String(); s != "" {
		m.t.Logf("process: %s", s)
	}
	if m.process.ProcessState.Exited() {
		m.t.Fatalf("the process ended by itself: %s", m.process.ProcessState)
	}
	m.stderr.Reset()
}

// The process is killed at random moments, while frames go both ways and the front-end talks. The front-end keeps its connection,
// unless one message was killed twice at, and comes again once then. No frame is lost; what comes twice is of one burst.
func TestAKilledProcessHasAnHeir(t *testing.T) {
	dir, err := os.MkdirTemp("", "vhost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	fd, err := unix.MemfdCreate("rscctl-book", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	m := &mortals{t: t, socket: dir + "/s", book: os.NewFile(uintptr(fd), "book"), files: map[string]int{}}
	defer m.book.Close()
	if err := m.book.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	book, err := mapBook(fd)
	if err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(func() {
		m.kill()
		for _, fd := range m.files {
			_ = unix.Close(fd)
		}
	})
	f := newGuest(t, m.socket, func(c *user.FrontendConfig) { c.RingSize, c.Memory = ferryBufs, 1<<20 }).start()
	g := newFerryGuest(t, f.Frontend, true)
	g.moves(1000)
	var wg sync.WaitGroup
	quit := make(chan struct{})
	reconnects := 0
	wg.Go(func() { reconnects = talk(t, g, quit) })
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for i := range rounds {
		if i%2 == 0 { // in the middle of its life; otherwise perhaps while it unpacks
			g.moves(1000)
		}
		time.Sleep(rand.N(40 * time.Millisecond))
		m.kill()
		m.start()
	}
	g.moves(1000)
	close(quit)
	wg.Wait()
	g.check()
	if reconnects > m.lost {
		t.Errorf("%d connections were made again, and %d states were lost", reconnects, m.lost)
	}
	t.Logf("%d kills, %d states that a front-end cannot go on with, %d connections made again; %d frames to the guest, %d of them twice; %d from it, %d of them twice",
		rounds, m.lost, reconnects, g.received.Load(), g.twice.Load(), book.fromGuest.Load(), book.again.Load())
}

// talk sends what a front-end may send, and comes again when it has lost its connection. It returns how often it had to.
func talk(t *testing.T, g *ferryGuest, quit chan struct{}) (reconnects int) {
	stopped := false
	for i := 0; ; i++ {
		select {
		case <-quit:
			if stopped {
				if err := g.Start(); err != nil {
					t.Errorf("start: %v", err)
				}
			}
			return reconnects
		default:
		}
		var err error
		switch {
		case stopped:
			stopped, err = false, g.Start()
		case i%3 == 0:
			err = g.SetCall(g.RX(0), true)
		case i%3 == 1:
			time.Sleep(rand.N(2 * time.Millisecond))
		default:
			_, err = g.Stop()
			stopped = err == nil
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, user.ErrDisconnected) || strings.Contains(err.Error(), "timeout") {
			t.Errorf("the front-end: %v", err)
			return reconnects
		}
		for {
			reconnects++
			_, _ = g.Stop() // it is not started any more, and Reconnect leaves the start to us:
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := g.Reconnect(ctx)
			cancel()
			if err == nil {
				err = g.Enable(0, true) // before the start, as QEMU does: nothing is dropped
			}
			if err == nil {
				err = g.Start()
			}
			if err == nil {
				break
			}
			if !errors.Is(err, user.ErrDisconnected) {
				t.Errorf("the front-end comes again: %v", err)
				return reconnects
			}
		}
	}
}
