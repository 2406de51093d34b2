package controller

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/test/netnstest"
)

// testStore is a store as systemd's: what it was told, in order.
type testStore struct {
	*fdstore.Store
	conn *net.UnixConn
	kept map[string]int
}

func newTestStore(t *testing.T) *testStore {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	store, err := fdstore.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &testStore{Store: store, conn: conn, kept: map[string]int{}}
	t.Cleanup(func() {
		s.catchUp(t)
		for _, fd := range s.kept {
			_ = unix.Close(fd)
		}
		_, _ = store.Close(), conn.Close()
	})
	return s
}

// follow does all that is told from here on, until stop is called: before, what is kept is not to be looked at.
func (s *testStore) follow(t *testing.T) (stop func()) {
	t.Helper()
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			s.catchUp(t)
			select {
			case <-quit:
				return
			default:
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// catchUp does what was told so far.
func (s *testStore) catchUp(t *testing.T) {
	t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		fd := -1
		if blocks, _ := unix.ParseSocketControlMessage(oob[:oobn]); len(blocks) == 1 {
			fds, err := unix.ParseUnixRights(&blocks[0])
			if err != nil || len(fds) != 1 {
				t.Fatalf("%q: %v %v", buf[:n], fds, err)
			}
			fd = fds[0]
		}
		text := string(buf[:n])
		_, name, _ := strings.Cut(text, "FDNAME=")
		if old, there := s.kept[name]; there && strings.HasPrefix(text, "FDSTORE") {
			_ = unix.Close(old)
			delete(s.kept, name)
		}
		switch {
		case strings.HasPrefix(text, "FDSTORE=1"):
			s.kept[name] = fd
		case fd >= 0: // a barrier
			_ = unix.Close(fd)
		}
	}
}

// files are duplicates of what is kept, as a next process inherits them.
func (s *testStore) files(t *testing.T) map[string]int {
	t.Helper()
	s.catchUp(t)
	out := map[string]int{}
	for name, fd := range s.kept {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = dup
	}
	return out
}

func memfd(t *testing.T, text string) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// A guest's memory file may have several names, and a name may go from one file to another: the next process has under each name what the port
// put there last, and nothing else is kept.
func TestWhatAPortKeepsIsFoundUnderItsNames(t *testing.T) {
	store := newTestStore(t)
	s := &survivor{store: store.Store, process: 1}
	k, err := s.port("v1")
	if err != nil {
		t.Fatal(err)
	}
	one, two := memfd(t, "one"), memfd(t, "two")
	for _, step := range []func() error{
		func() error { return k.Put("region.0", one) },
		func() error { return k.Put("region.1", one) },
		func() error { return k.Drop("region.0") },
		func() error { return k.Put("region.0", two) },
		func() error { return k.Put("region.2", two) },
		func() error { return k.Note([]byte(`{}`)) },
		func() error { return k.Drop("region.2") }, // behind the note, which still names it
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want map[string]string) {
		t.Helper()
		p := parcel.New("")
		defer p.Close()
		for name, fd := range store.files(t) {
			if err := p.Put(name, fd); err != nil {
				t.Fatal(err)
			}
		}
		_, files, err := takePort(p, "v1")
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for name, fd := range files {
			b := make([]byte, 8)
			n, err := unix.Pread(fd, b, 0)
			if err != nil {
				t.Fatal(err)
			}
			got[name] = string(b[:n])
			_ = unix.Close(fd)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	check(map[string]string{"region.0": "two", "region.1": "one", "region.2": "two"})
	for _, name := range []string{"region.0", "region.1"} {
		if err := k.Drop(name); err != nil {
			t.Fatal(err)
		}
	}
	check(map[string]string{})
	if left := slices.Sorted(maps.Keys(store.kept)); !slices.Equal(left, []string{portNoteName("v1", 1)}) {
		t.Errorf("the store still has %q", left)
	}
	if err := k.Note(nil); err != nil {
		t.Fatal(err)
	}
}

// What is kept and cannot be gone on with, because it is damaged or of a newer version, is refused with words, and the store is empty after.
func TestWhatCannotBeGoneOnWithIsLetGo(t *testing.T) {
	newer, err := json.Marshal(noted{Version: parcel.Version + 1, From: "v9", State: json.RawMessage(`{"lock":7}`)})
	if err != nil {
		t.Fatal(err)
	}
	torn, err := json.Marshal(noted{Version: parcel.Version, From: "v1", State: json.RawMessage(`{"lock":"lock"}`)})
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{"empty": nil, "newer": newer, "no JSON": []byte("{"), "without its files": torn} {
		t.Run(name, func(t *testing.T) {
			store := newTestStore(t)
			note, err := fdstore.NewNote("rscctl-state", stateRoom)
			if err != nil {
				t.Fatal(err)
			}
			if body != nil {
				if err := note.Write(body); err != nil {
					t.Fatal(err)
				}
			}
			for name, fd := range map[string]int{statePrefix + "1": note.FD(), "u1.xdp.7": memfd(t, "x"), "v1" + portPart + "call.0": memfd(t, "y")} {
				if err := store.Put(name, fd); err != nil {
					t.Fatal(err)
				}
			}
			if err := note.Close(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			c, err := Recover(Options{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "ctl.sock"), BPFFS: filepath.Join(dir, "bpffs"),
				Version: "v1", Logger: slog.New(slog.DiscardHandler), Store: store.Store}, store.files(t))
			if err == nil || c != nil {
				t.Fatalf("gone on with %s", name)
			}
			t.Log(err)
			store.catchUp(t)
			if len(store.kept) != 0 {
				t.Errorf("the store still has %q", slices.Sorted(maps.Keys(store.kept)))
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("it made %v %v", left, err)
			}
		})
	}
}

// A process that ends because the next one is to come leaves all to it: what listens goes on listening, and who asks in between is answered.
func TestARestartGoesOnWhereItStood(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	store, dir := newTestStore(t), t.TempDir()
	var said bytes.Buffer
	opt := Options{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s"), BPFFS: filepath.Join(dir, "bpf"), Metrics: free.Addr().String(),
		Logger: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelError})), Store: store.Store, Again: func() bool { return true }}
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	run := func(c *Controller) (end func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		select {
		case <-c.Serving():
		case err := <-ended:
			t.Fatal(err)
		}
		follow := store.follow(t)
		return func() error {
			cancel()
			err := <-ended
			follow()
			return err
		}
	}
	if err := run(c)(); !errors.Is(err, ErrReplaced) || said.Len() > 0 {
		t.Fatalf("ended with %v: %s", err, &said)
	}
	between, err := net.Dial("unix", opt.Socket)
	if err != nil {
		t.Fatalf("nobody listens: %v", err)
	}
	defer between.Close()
	opt.Again = nil
	next, err := Recover(opt, store.files(t))
	if err != nil {
		t.Fatal(err)
	}
	end := run(next)
	_ = between.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(between, "GET /v1/config HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(between).ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Errorf("who asked in between is told %q: %v", line, err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}
