package unixsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// dup is a descriptor as an heir gets it.
func dup(t *testing.T, l *Listener) int {
	t.Helper()
	fd, err := l.Dup()
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestAnAdoptedSocketGoesOn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l := listen(t, config(path))
	id, fd := l.ID(), dup(t, l)
	if err := l.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("close of what was left: %v", err)
	}
	c, err := net.Dial("unix", path) // while nobody is there
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heir, err := Adopt(config(path), id, fd)
	if err != nil {
		t.Fatal(err)
	}
	if heir.Path() != path || heir.ID() != id {
		t.Errorf("path %s, file %v", heir.Path(), heir.ID())
	}
	served, err := heir.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = served.Close()
	if gid, ok := heir.Group(); !ok || int(gid) != os.Getegid() {
		t.Errorf("group %d, %t", gid, ok)
	}
	holds(t, dir, "s")
	if err := heir.Close(); err != nil {
		t.Error(err)
	}
	holds(t, dir)
}

func TestAnHeirRemovesOnlyTheFileThatItInherited(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l := listen(t, config(path))
	id, fd := l.ID(), dup(t, l)
	_ = l.Leave()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := listen(t, config(path))
	heir, err := Adopt(config(path), id, fd)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := heir.Group(); ok {
		t.Error("the group of somebody else's file")
	}
	if err := heir.Close(); err != nil {
		t.Error(err)
	}
	if err := connects(path); err != nil {
		t.Errorf("the socket of somebody else: %v", err)
	}
	_ = other
}

func TestOnlyAListeningUnixSocketIsAdopted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l := listen(t, config(path))
	file, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	unbound, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	packets, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(packets, &unix.SockaddrUnix{Name: filepath.Join(dir, "p")}), unix.Listen(packets, 1)); err != nil {
		t.Fatal(err)
	}
	copyOf := func(f *os.File) int {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for name, fd := range map[string]int{"file": copyOf(file), "tcp": copyOf(tcpFile), "unbound": unbound, "packets": packets, "none": -1} {
		if _, err := Adopt(config(path), l.ID(), fd); !errors.Is(err, ErrNotListener) {
			t.Errorf("%s: %v", name, err)
		}
		if err := unix.Close(fd); !errors.Is(err, unix.EBADF) {
			t.Errorf("%s is still open: %v", name, err)
		}
	}
	for where, want := range map[string]error{"": ErrPath, filepath.Join(dir, "none", "s"): ErrNoFolder, dir + "/": ErrNotSocket} {
		fd := dup(t, l)
		if _, err := Adopt(config(where), l.ID(), fd); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", where, err, want)
		}
		if err := unix.Close(fd); !errors.Is(err, unix.EBADF) {
			t.Errorf("%q: the socket is still open: %v", where, err)
		}
	}
	if err := connects(path); err != nil { // by the listener itself
		t.Error(err)
	}
}
