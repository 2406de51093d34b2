package unixsock

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotListener: a descriptor that is to be adopted is no listening Unix stream socket.
var ErrNotListener = errors.New("not a listening Unix socket")

// Adopt goes on with a listening socket that another process made, or a Listener of this one before Leave: fd, which belongs to
// the Listener afterwards and is closed on an error, and the file at c.Path that was made with it, by its ID. Mode, owner and backlog
// stay as they are. The file may be gone, or another one by now: Close removes it only if it is still the same. Errors: ErrNotListener,
// ErrPath, ErrPathTooLong, ErrNoFolder, ErrFolder, ErrNotSocket and those of the system.
func Adopt(c Config, id FileID, fd int) (*Listener, error) {
	file := os.NewFile(uintptr(fd), c.Path)
	if file == nil {
		return nil, c.on(fmt.Errorf("descriptor %d: %w", fd, ErrNotListener))
	}
	defer file.Close() // FileListener works on a copy
	if !listens(fd) {
		return nil, c.on(ErrNotListener)
	}
	dir, name, err := c.open()
	if err != nil {
		return nil, err
	}
	l := &Listener{path: c.Path, name: name, dir: dir, id: id}
	if err := l.wrap(file); err != nil {
		dir.close()
		return nil, c.on(err)
	}
	return l, nil
}

func listens(fd int) bool {
	for option, want := range map[int]int{unix.SO_DOMAIN: unix.AF_UNIX, unix.SO_TYPE: unix.SOCK_STREAM, unix.SO_ACCEPTCONN: 1} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil || got != want {
			return false
		}
	}
	return true
}

// ID is the socket's file.
func (l *Listener) ID() FileID { return l.id }

// Dup returns another descriptor of the socket, closed on exec, which is the caller's. Connections that wait for Accept wait for it
// too.
func (l *Listener) Dup() (fd int, err error) {
	if fd, err = Dup(l.UnixListener); err != nil {
		return -1, fmt.Errorf("socket %s: %w", l.path, err)
	}
	return fd, nil
}

// Dup returns another descriptor of a socket, closed on exec, which is the caller's.
func Dup(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	if err := errors.Join(cerr, err); err != nil {
		return -1, err
	}
	return fd, nil
}

// Leave ends the Listener as Close does, but leaves the file where it is: the socket goes on listening for whoever has a Dup of it.
func (l *Listener) Leave() error { return l.close(func() {}) }
