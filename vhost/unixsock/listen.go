package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxPath  = 107 // sizeof(sun_path) less the closing zero
	maxTries = 10  // somebody else changes the name again and again
)

// Config is a socket to listen on.
type Config struct {
	Path     string
	Mode     fs.FileMode // permission bits; who may write the file may connect
	UID, GID int         // owner of the file; -1 keeps ours
	Backlog  int         // connections that wait for Accept
}

// Listener is a listening socket and its file. Its methods are safe for concurrent use.
type Listener struct {
	*net.UnixListener
	path string
	name string // in dir
	id   FileID

	mu     sync.Mutex
	dir    folder
	closed bool
}

// FileID tells a file from every other, whatever its name is.
type FileID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

func idOf(st *unix.Stat_t) FileID { return FileID{uint64(st.Dev), st.Ino} }

// Check says, without changing anything, whether Listen would find a place: the errors are Listen's.
func Check(c Config) error {
	dir, name, err := c.open()
	if err != nil {
		return err
	}
	defer dir.close()
	_, err = dir.inspect(name)
	return c.on(err)
}

// Listen makes the socket. A stale file is replaced. Errors: ErrPath, ErrPathTooLong, ErrNoFolder, ErrFolder, ErrNotSocket, ErrInUse, and
// those of the system.
func Listen(c Config) (*Listener, error) {
	dir, name, err := c.open()
	if err != nil {
		return nil, err
	}
	l, err := listenIn(dir, name, c)
	if err != nil {
		dir.close()
		return nil, c.on(err)
	}
	return l, nil
}

func (c Config) on(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("socket %s: %w", c.Path, err)
}

// CheckPath says whether a path can be a socket's, whatever is there. Errors: ErrPath, ErrPathTooLong.
func CheckPath(path string) error {
	switch {
	case path == "", path[0] == '@': // that would be an abstract name
		return fmt.Errorf("socket %q: %w", path, ErrPath)
	case len(path) > maxPath:
		return fmt.Errorf("socket %s: %w (%d)", path, ErrPathTooLong, len(path))
	}
	return nil
}

// open opens the socket's folder.
func (c Config) open() (dir folder, name string, err error) {
	if err := CheckPath(c.Path); err != nil {
		return dir, "", err
	}
	parent, name := filepath.Split(c.Path)
	if name == "" || name == "." || name == ".." {
		return dir, "", c.on(fmt.Errorf("%w: it names a folder", ErrNotSocket))
	}
	if dir, err = openFolder(parent, trusted{c.UID, c.GID}); err != nil {
		return dir, "", c.on(err)
	}
	return dir, name, nil
}

// inspect looks at what is in the way: nothing (nil), or a stale socket. ErrNotSocket and ErrInUse for anything else.
func (f folder) inspect(name string) (stale *FileID, err error) {
	st, err := f.stat(name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return nil, ErrNotSocket
	}
	live, err := f.alive(name)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // it went at this moment
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if live {
		return nil, ErrInUse
	}
	id := idOf(&st)
	return &id, nil
}

// listenIn makes the socket in a private folder and moves it into dir, which the Listener then owns.
func listenIn(dir folder, name string, c Config) (_ *Listener, err error) {
	if _, err := dir.inspect(name); err != nil { // before anything is made
		return nil, err
	}
	tmp, tmpName, err := dir.private()
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = unix.Unlinkat(tmp.fd, name, 0)
		tmp.close()
		_ = unix.Unlinkat(dir.fd, tmpName, unix.AT_REMOVEDIR)
	}()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), c.Path)
	defer file.Close() // FileListener works on a copy
	if err := tmp.in(name, func(name string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: name}) }); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Fchmodat(tmp.fd, name, uint32(c.Mode.Perm()), 0); err != nil { // nobody else can have put a link there
		return nil, fmt.Errorf("mode: %w", err)
	}
	if c.UID >= 0 || c.GID >= 0 {
		if err := unix.Fchownat(tmp.fd, name, c.UID, c.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, fmt.Errorf("owner: %w", err)
		}
	}
	st, err := tmp.stat(name)
	if err != nil {
		return nil, err
	}
	// It listens before it has its name: whoever looks at the name, a second rscctl for example, sees a live socket.
	if err := unix.Listen(fd, max(1, c.Backlog)); err != nil {
		return nil, err
	}
	if err := moveIn(tmp, dir, name); err != nil {
		return nil, err
	}
	l := &Listener{path: c.Path, name: name, dir: dir, id: idOf(&st)}
	if err := l.wrap(file); err != nil {
		l.remove()
		return nil, err
	}
	return l, nil
}

// wrap makes l accept on a copy of file.
func (l *Listener) wrap(file *os.File) error {
	nl, err := net.FileListener(file)
	if err != nil {
		return err
	}
	l.UnixListener = nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false) // by name, and not the one that we mean
	return nil
}

// moveIn gives the file called name in tmp its place in dir. What it replaces is in tmp afterwards, and is a stale socket.
func moveIn(tmp, dir folder, name string) error {
	defer dir.lock()()
	for range maxTries {
		stale, err := dir.inspect(name)
		if err != nil {
			return err
		}
		if stale == nil {
			err := unix.Renameat2(tmp.fd, name, dir.fd, name, unix.RENAME_NOREPLACE)
			if errors.Is(err, unix.EEXIST) { // made at this moment
				continue
			}
			return err
		}
		err = unix.Renameat2(tmp.fd, name, dir.fd, name, unix.RENAME_EXCHANGE)
		if errors.Is(err, unix.ENOENT) { // removed at this moment
			continue
		}
		if err != nil {
			return err
		}
		// What was in the way is now where nobody changes it. It must be what was looked at, and still be dead.
		if now, err := tmp.inspect(name); err == nil && now != nil && *now == *stale {
			return nil
		}
		if err := unix.Renameat2(tmp.fd, name, dir.fd, name, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the name changes all the time", ErrInUse)
}

// Path is the path that was asked for. Addr is the bare name.
func (l *Listener) Path() string { return l.path }

// Group is the group that the file belongs to now; an operator may have changed it. False when the file is no longer ours.
func (l *Listener) Group() (gid uint32, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, false
	}
	st, err := l.dir.stat(l.name)
	return st.Gid, err == nil && idOf(&st) == l.id
}

// Close stops listening and removes the file, unless somebody has put another one in its place. A second Close does nothing.
func (l *Listener) Close() error { return l.close(l.remove) }

func (l *Listener) close(last func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	err := l.UnixListener.Close()
	last()
	l.dir.close()
	return err
}

// remove moves the file to where nobody else changes it, and removes it there if it is ours. Another one goes back.
func (l *Listener) remove() {
	if st, err := l.dir.stat(l.name); err != nil || idOf(&st) != l.id {
		return
	}
	tmp, tmpName, err := l.dir.private()
	if err != nil {
		return
	}
	defer func() {
		tmp.close()
		_ = unix.Unlinkat(l.dir.fd, tmpName, unix.AT_REMOVEDIR)
	}()
	if unix.Renameat2(l.dir.fd, l.name, tmp.fd, l.name, unix.RENAME_NOREPLACE) != nil {
		return
	}
	if st, err := tmp.stat(l.name); err == nil && idOf(&st) == l.id {
		_ = unix.Unlinkat(tmp.fd, l.name, 0)
		return
	}
	_ = unix.Renameat2(tmp.fd, l.name, l.dir.fd, l.name, unix.RENAME_NOREPLACE)
}
