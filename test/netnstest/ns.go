package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netns"
)

var (
	errExists  = errors.New("namespace exists already")
	errBadName = errors.New("not a namespace name")
)

// NS is a named namespace of a test, open. As `ip netns add` makes it, the name is a bind mount of the namespace's nsfs file
// under netns.Dir: `ip netns list` and `nsenter --net=` see it.
type NS struct {
	*netns.NS
	name string
}

// newNS makes an empty namespace with a name; its loopback is down, as the kernel makes it. Nothing is left behind when it fails.
func newNS(name string) (*NS, error) {
	path, err := namePath(name)
	if err != nil {
		return nil, err
	}
	if err := prepareDir(); err != nil {
		return nil, fmt.Errorf("namespace: %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("namespace: %s: %w", name, errExists)
	}
	if err != nil {
		return nil, fmt.Errorf("namespace: %s: %w", name, err)
	}
	f.Close()
	if err = mountNew(path); err == nil {
		var ns *netns.NS
		if ns, err = netns.Open(name); err == nil {
			return &NS{ns, name}, nil
		}
	}
	// The error is the one above; a second one while clearing up would only hide it.
	_ = remove(name)
	return nil, fmt.Errorf("namespace: %s: %w", name, err)
}

// mountNew makes a namespace and mounts it on path. Do gives it a thread, which goes back afterwards.
func mountNew(path string) error {
	here, err := current()
	if err != nil {
		return err
	}
	defer here.Close()
	return here.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
}

// current opens the namespace of this process.
func current() (*netns.NS, error) { return netns.Open("/proc/self/ns/net") }

// Name is the name in netns.Dir.
func (n *NS) Name() string { return n.name }

// Path is the file that the name stands for.
func (n *NS) Path() string { return filepath.Join(netns.Dir, n.name) }

// Start starts a command inside the namespace: the child inherits the namespace of the thread that forks it. The other
// namespaces, /sys among them, stay the caller's; `ip netns exec` remounts /sys, and with it the BPF file system. Do not set
// SysProcAttr.Pdeathsig: it fires when that *thread* ends.
func (n *NS) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run starts a command inside the namespace and waits for it.
func (n *NS) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Delete removes the name and closes the file. The namespace itself goes when its last process and socket have gone;
// the kernel removes its interfaces a little later, from a work queue.
func (n *NS) Delete() error { return errors.Join(remove(n.name), n.Close()) }

// namePath keeps a name inside netns.Dir: one path element.
func namePath(name string) (string, error) {
	if name == "." || name == ".." || filepath.Base(name) != name {
		return "", fmt.Errorf("namespace: %q: %w", name, errBadName)
	}
	return filepath.Join(netns.Dir, name), nil
}

// remove removes a name without opening it: also one whose mount is gone and that is only an empty file.
func remove(name string) error {
	path, err := namePath(name)
	if err != nil {
		return err
	}
	// EINVAL: not a mount point (any more).
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("namespace: %s: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	return nil
}

// prepareDir makes netns.Dir and, as iproute2 does (ip/ipnetns.c, netns_add), turns it into a shared mount: a mount or
// unmount there then reaches the mount namespaces of other services too. Otherwise a service started in between would
// keep a deleted namespace alive by its own copy of the mount.
func prepareDir() error {
	if err := os.MkdirAll(netns.Dir, 0o755); err != nil {
		return err
	}
	// Two callers at once would stack two mounts; iproute2 takes the same lock.
	d, err := os.Open(netns.Dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netns.Dir, err)
	}
	err = unix.Mount("", netns.Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err != unix.EINVAL {
		return wrapMount(err)
	}
	// EINVAL: not a mount point yet.
	if err := unix.Mount(netns.Dir, netns.Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrapMount(err)
	}
	return wrapMount(unix.Mount("", netns.Dir, "none", unix.MS_SHARED|unix.MS_REC, ""))
}

func wrapMount(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("mount %s: %w", netns.Dir, err)
}
