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
// be called from several goroutines, except Close, which ends its use.
type NS struct {
	f    *os.File
	path string // it was opened by
}

// Open opens a namespace by its name in Dir, or by path if there is a slash in it (such as /proc/123/ns/net).
func Open(nameOrPath string) (*NS, error) {
	path := nameOrPath
	if !strings.Contains(nameOrPath, "/") {
		if !validName(nameOrPath) {
			return nil, fmt.Errorf("namespace: %q: %w", nameOrPath, ErrBadName)
		}
		path = filepath.Join(Dir, nameOrPath)
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("namespace: %s: %w", nameOrPath, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("namespace: %s: %w", nameOrPath, err)
	}
	n := &NS{f: f, path: path}
	if err := n.check(); err != nil {
		f.Close()
		return nil, fmt.Errorf("namespace: %s: %w", nameOrPath, err)
	}
	return n, nil
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

// FD is the open nsfs file, for netlink attributes such as IFLA_NET_NS_FD. It belongs to n.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Close closes the file; a name in Dir stays.
func (n *NS) Close() error { return n.f.Close() }

// validName keeps a name inside Dir: one path element, not too long for one.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}
