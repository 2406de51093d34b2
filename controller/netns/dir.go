package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// prepareDir makes Dir and, as iproute2 does (ip/ipnetns.c, netns_add), turns it into a shared mount: a mount or
// unmount there then reaches the mount namespaces of other services too. Otherwise a service started in between would
// keep a deleted namespace alive by its own copy of the mount.
func prepareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	// Two callers at once would stack two mounts; iproute2 takes the same lock.
	d, err := os.Open(Dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", Dir, err)
	}
	err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err != unix.EINVAL {
		return wrapMount(err)
	}
	// EINVAL: not a mount point yet.
	if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrapMount(err)
	}
	return wrapMount(unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, ""))
}

func wrapMount(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("mount %s: %w", Dir, err)
}

// List returns the names in Dir, sorted; none when the folder does not exist.
func List() ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// PIDName is the name this module gives to a namespace of one process: "<prefix>-<pid>". The process is in the name so
// that what a killed one left can be told from what a living one uses.
func PIDName(prefix string, pid int) string { return prefix + "-" + strconv.Itoa(pid) }

// Leftovers returns the names that begin with prefix and end in the number of a process that no longer exists. A
// number that was given to a new process in between hides a leftover; it never makes a living one look dead.
func Leftovers(prefix string) ([]string, error) {
	names, err := List()
	if err != nil {
		return nil, err
	}
	var dead []string
	for _, name := range names {
		if pid, ok := ownerPID(name, prefix); ok && !alive(pid) {
			dead = append(dead, name)
		}
	}
	return dead, nil
}

// Sweep removes what Leftovers finds, and returns the names removed.
func Sweep(prefix string) ([]string, error) {
	dead, err := Leftovers(prefix)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, name := range dead {
		// Another process may be sweeping too.
		if err := Remove(name); err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}

func ownerPID(name, prefix string) (int, bool) {
	if !strings.HasPrefix(name, prefix) {
		return 0, false
	}
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return 0, false
	}
	pid, err := strconv.Atoi(name[i+1:])
	return pid, err == nil && pid > 0
}

// alive asks by kill(pid, 0): EPERM means that it lives and belongs to somebody else.
func alive(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }

// ByFile finds the name in Dir whose namespace satisfies match, which is called with each one open; "" if none does.
// Entries that are not namespaces (empty files of dead mounts) are passed over.
func ByFile(match func(n *NS) bool) (string, error) {
	names, err := List()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		n, err := Open(filepath.Join(Dir, name))
		if err != nil {
			continue
		}
		ok := match(n)
		n.Close()
		if ok {
			return name, nil
		}
	}
	return "", nil
}
