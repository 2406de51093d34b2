package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where named namespaces live; iproute2 uses the same folder.
const Dir = "/run/netns"

var (
	// ErrExists is returned by New for a name that is taken.
	ErrExists = errors.New("namespace exists already")
	// ErrNotFound is returned for a name or path that does not exist.
	ErrNotFound = errors.New("no such namespace")
	// ErrBadName is returned for a name that cannot be a file name.
	ErrBadName = errors.New("not a namespace name")
	// ErrNotNetNS is returned for a path that is not a network namespace.
	ErrNotNetNS = errors.New("not a network namespace")
	// ErrThreadLost is returned when the work was done but its thread could not go back; that thread has ended.
	ErrThreadLost = errors.New("thread could not return to its namespace and was given up")
)

// NS is an open network namespace. The open file keeps the namespace alive even when its name is gone. Its methods may
// be called from several goroutines, except Close and Delete, which end its use.
type NS struct {
	f    *os.File
	path string
	name string // "" when it was not opened from Dir
}

// New makes an empty namespace with a name (its loopback down, as the kernel makes it) and opens it. It needs
// CAP_SYS_ADMIN. Nothing is left behind when it fails.
func New(name string) (*NS, error) {
	if !validName(name) {
		return nil, fmt.Errorf("namespace: %q: %w", name, ErrBadName)
	}
	path := filepath.Join(Dir, name)
	if err := prepareDir(); err != nil {
		return nil, fmt.Errorf("namespace: %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("namespace: %s: %w", name, ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("namespace: %s: %w", name, err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount(threadPath, path, "none", unix.MS_BIND, "")
	})
	if err == nil {
		var n *NS
		if n, err = Open(name); err == nil {
			return n, nil
		}
	}
	// The error is the one above; a second one while clearing up would only hide it.
	_ = Remove(name)
	return nil, fmt.Errorf("namespace: %s: %w", name, err)
}

// Open opens a namespace by its name in Dir, or by path if there is a slash in it (such as /proc/123/ns/net).
func Open(nameOrPath string) (*NS, error) {
	path, name := nameOrPath, ""
	if !strings.Contains(nameOrPath, "/") {
		if !validName(nameOrPath) {
			return nil, fmt.Errorf("namespace: %q: %w", nameOrPath, ErrBadName)
		}
		path, name = filepath.Join(Dir, nameOrPath), nameOrPath
	} else if filepath.Dir(nameOrPath) == Dir {
		name = filepath.Base(nameOrPath)
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("namespace: %s: %w", nameOrPath, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("namespace: %s: %w", nameOrPath, err)
	}
	n := &NS{f: f, path: path, name: name}
	if err := n.check(); err != nil {
		f.Close()
		return nil, fmt.Errorf("namespace: %s: %w", nameOrPath, err)
	}
	return n, nil
}

// Current opens the namespace of the calling goroutine's thread. Its Path is that of the process.
func Current() (*NS, error) {
	// One open(2) runs on one thread, so the goroutine need not be locked.
	f, err := os.Open(threadPath)
	if err != nil {
		return nil, fmt.Errorf("namespace: current: %w", err)
	}
	return &NS{f: f, path: fmt.Sprintf("/proc/%d/ns/net", os.Getpid())}, nil
}

// check tells a network namespace from any other file: an empty file left in Dir by a dead mount, or a mount namespace,
// opens as well.
func (n *NS) check() error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(n.FD(), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return ErrNotNetNS
	}
	kind, err := unix.IoctlRetInt(n.FD(), unix.NS_GET_NSTYPE)
	if err == nil && kind != unix.CLONE_NEWNET {
		return ErrNotNetNS
	}
	return nil // kernels before 4.11 have no NS_GET_NSTYPE: setns will say so
}

// Name is the name in Dir, or "" for a namespace opened by another path.
func (n *NS) Name() string { return n.name }

// Path is the file the namespace was opened by.
func (n *NS) Path() string { return n.path }

// FD is the open nsfs file, for netlink attributes such as IFLA_NET_NS_FD. It belongs to n.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Same tells whether two open namespaces are one (device and inode of nsfs, see ioctl_ns(2)).
func (n *NS) Same(o *NS) (bool, error) {
	a, err := n.id()
	if err != nil {
		return false, err
	}
	b, err := o.id()
	if err != nil {
		return false, err
	}
	return a == b, nil
}

type identity struct{ dev, ino uint64 }

func (n *NS) id() (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.FD(), &st); err != nil {
		return identity{}, fmt.Errorf("namespace: %s: stat: %w", n.path, err)
	}
	return identity{st.Dev, st.Ino}, nil
}

// Close closes the file; the name stays.
func (n *NS) Close() error { return n.f.Close() }

// Delete removes the name and closes the file. The namespace itself goes when its last process and socket have gone;
// the kernel removes its interfaces a little later, from a work queue.
func (n *NS) Delete() error {
	err := n.f.Close()
	if n.name == "" {
		return errors.Join(fmt.Errorf("namespace: %s: delete: %w", n.path, ErrBadName), err)
	}
	return errors.Join(Remove(n.name), err)
}

// Remove removes a name from Dir without opening it: also one whose mount is gone and that is only an empty file.
func Remove(name string) error {
	if !validName(name) {
		return fmt.Errorf("namespace: %q: %w", name, ErrBadName)
	}
	path := filepath.Join(Dir, name)
	// EINVAL: not a mount point (any more).
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("namespace: %s: unmount: %w", name, err)
	}
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("namespace: %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("namespace: %s: %w", name, err)
	}
	return nil
}

// validName keeps a name inside Dir: one path element, not too long for one.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}
