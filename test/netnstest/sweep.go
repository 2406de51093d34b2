package netnstest

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netns"
)

// pidName is the name that tests give to a namespace of one process: "<prefix>-<pid>". The process is in the name so
// that what a killed one left can be told from what a living one uses.
func pidName(prefix string, pid int) string { return prefix + "-" + strconv.Itoa(pid) }

// leftovers returns the names that begin with prefix and end in the number of a process that no longer exists. A
// number that was given to a new process in between hides a leftover; it never makes a living one look dead.
func leftovers(prefix string) ([]string, error) {
	names, err := netns.List()
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

// sweep removes what leftovers finds, and returns the names removed.
func sweep(prefix string) ([]string, error) {
	dead, err := leftovers(prefix)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, name := range dead {
		// Another process may be sweeping too.
		if err := remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
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
