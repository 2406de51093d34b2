package unixsock

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func config(path string) Config { return Config{Path: path, Mode: 0o660, UID: -1, GID: -1, Backlog: 4} }

func listen(t *testing.T, c Config) *Listener {
	t.Helper()
	l, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func connects(path string) error {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err
}

// holds fails the test unless the folder holds only the named files.
func holds(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

// stale leaves a socket file that nobody listens on.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestASocketHasItsModeWhateverTheUmaskIs(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666} {
		path := filepath.Join(dir, "s")
		c := config(path)
		c.Mode = mode
		l := listen(t, c)
		if st, err := os.Lstat(path); err != nil || st.Mode() != mode|fs.ModeSocket {
			t.Errorf("mode %v, %v, want %v", st.Mode(), err, mode)
		}
		if err := connects(path); err != nil || l.Path() != path {
			t.Errorf("%v at %s", err, l.Path())
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		holds(t, dir)
	}
	if now := syscall.Umask(0o077); now != 0o077 {
		t.Errorf("the process' umask became %o", now)
	}
}

func TestTheOwnerIsSetBeforeAnybodyCanConnect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("allowed: only root gives files away")
	}
	path := filepath.Join(t.TempDir(), "s")
	c := config(path)
	c.UID, c.GID = 1234, 4321
	l := listen(t, c)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o777 != 0o660 {
		t.Errorf("owner %d:%d, mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	if gid, ok := l.Group(); !ok || gid != 4321 {
		t.Errorf("group %d, %t", gid, ok)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Group(); ok {
		t.Error("the group of a file that is gone")
	}
}

func TestALongOrOddNameIsBoundAsItIs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"@not-abstract", " ", strings.Repeat("x", maxPath-len(dir)-1)} {
		path := filepath.Join(dir, name)
		l := listen(t, config(path))
		if err := connects(path); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		l.Close()
	}
	holds(t, dir)
	cwd, err := os.Readlink("/proc/self/cwd")
	if err != nil || cwd == dir {
		t.Errorf("working folder of the process: %s, %v", cwd, err)
	}
}

func TestWhatIsInTheWayIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	live := listen(t, config(path("live")))
	dgram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path("datagrams"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer dgram.Close()
	stale(t, path("stale"))
	for _, err := range []error{os.WriteFile(path("file"), []byte("precious"), 0o600), os.Symlink("stale", path("link")), os.Mkdir(path("sub"), 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		path string
		want error
	}{
		{live.Path(), ErrInUse}, {path("datagrams"), ErrInUse}, {path("file"), ErrNotSocket}, {path("link"), ErrNotSocket},
		{path("sub"), ErrNotSocket}, {path("sub") + "/", ErrNotSocket}, {path("none/s"), ErrNoFolder}, {path("file/s"), ErrNoFolder},
		{path(strings.Repeat("x", 200)), ErrPathTooLong}, {"", ErrPath}, {"@x", ErrPath},
	} {
		if err := Check(config(tt.path)); !errors.Is(err, tt.want) {
			t.Errorf("check %s: %v, want %v", tt.path, err, tt.want)
		}
		l, err := Listen(config(tt.path))
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.path, err, tt.want)
		}
		if err == nil {
			l.Close()
		}
	}
	if b, err := os.ReadFile(path("file")); err != nil || string(b) != "precious" {
		t.Errorf("file %q, %v", b, err)
	}
	if err := connects(path("live")); err != nil {
		t.Errorf("the live socket: %v", err)
	}
	holds(t, dir, "datagrams", "file", "link", "live", "stale", "sub")
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	stale(t, path)
	if err := Check(config(path)); err != nil {
		t.Errorf("check: %v", err)
	}
	listen(t, config(path))
	if err := connects(path); err != nil {
		t.Error(err)
	}
	holds(t, dir, "s")
}

// A server that is slow to accept refuses by EAGAIN, not by ECONNREFUSED: it lives.
func TestALiveSocketWithAFullQueueIsNotStale(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	c := config(path)
	c.Backlog = 1
	listen(t, c)
	full := false
	for range 10 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == unix.EAGAIN {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("the queue does not fill")
	}
	if _, err := Listen(c); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	holds(t, dir, "s")
}

func TestCloseRemovesOnlyItsOwnFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	first := listen(t, config(path))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := listen(t, config(path))
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := connects(path); err != nil {
		t.Errorf("the socket of somebody else: %v", err)
	}
	if err := first.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	second.Close()
	holds(t, dir)
}

// Many start at once on one path with a stale file: one has it, and the others say so.
func TestOneOfManyStartersHasTheSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for range 20 {
		stale(t, path)
		var wg sync.WaitGroup
		won := make(chan *Listener, 8)
		for range cap(won) {
			wg.Go(func() {
				l, err := Listen(config(path))
				if err == nil {
					won <- l
				} else if !errors.Is(err, ErrInUse) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(won)
		if len(won) != 1 {
			t.Errorf("%d listeners", len(won))
		}
		for l := range won {
			if gid, ok := l.Group(); !ok || int(gid) != os.Getegid() {
				t.Error("the winner's file is not at the path")
			}
			l.Close()
		}
		holds(t, dir)
	}
}

// A user who may write the folder swaps the new socket for a link to a file of root's. The folder is refused; this test goes
// around that check and shows that the acts themselves never hit the link's target.
func TestALinkSwappedInIsNeverFollowed(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(shared, "s")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Whatever appears in the folder becomes a link to the victim: the socket, and the private folder with it.
				entries, _ := os.ReadDir(shared)
				for _, e := range entries {
					if e.Type() == fs.ModeSymlink {
						_ = os.Remove(filepath.Join(shared, e.Name()))
						continue
					}
					from := filepath.Join(shared, e.Name())
					_ = os.Rename(from, filepath.Join(dir, "away"))
					_ = os.RemoveAll(filepath.Join(dir, "away"))
					_ = os.Symlink(victim, from)
				}
			}
		})
	}
	made := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		d, err := openFolder(shared, trusted{-1, -1})
		if err != nil {
			t.Fatal(err)
		}
		l, err := listenIn(d, "s", Config{Path: path, Mode: 0o666, UID: os.Geteuid(), GID: os.Getegid(), Backlog: 1})
		if err != nil {
			d.close()
			continue
		}
		made++
		l.Close()
	}
	close(stop)
	wg.Wait()
	st, err := os.Lstat(victim)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("victim: mode %v, %v", st.Mode(), err)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		t.Errorf("victim: %q, %v", b, err)
	}
	t.Logf("%d sockets made meanwhile", made)
}

// A program that knows nothing of us puts its live socket in place at any moment: it is never removed.
func TestALiveSocketThatComesMeanwhileIsPutBack(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	lost := 0
	for n := range 400 {
		stale(t, path)
		other, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + "-other", Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		other.SetUnlinkOnClose(false)
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Duration(n) * time.Microsecond)
			if err := os.Rename(path+"-other", path); err != nil {
				t.Error(err)
			}
		})
		l, err := Listen(config(path))
		if err != nil {
			lost++
		}
		wg.Wait()
		if err := connects(path); err != nil {
			t.Fatalf("round %d: the other's socket is gone: %v (ours: %v)", n, err, l)
		}
		if l != nil {
			if _, ok := l.Group(); ok {
				t.Fatalf("round %d: ours is in the place of the other's", n)
			}
			l.Close()
		}
		other.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		holds(t, dir)
	}
	t.Logf("ErrInUse %d times", lost)
}
