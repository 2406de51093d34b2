package user

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// EventFD is the kernel's counter by which one side of a ring wakes the other.
// Drain never waits, and Signal does not with a counter of our own making. It is
// safe for concurrent use but for Close.
type EventFD struct {
	fd int
}

// eventOne is what Signal adds: 1 in the host's byte order.
var eventOne = [8]byte{1}

// NewEventFD makes a counter that does not block and is closed on exec.
func NewEventFD() (*EventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &EventFD{fd: fd}, nil
}

// AdoptEventFD takes over fd, which a peer sent, if it is an eventfd, and
// closes it otherwise: ErrBadFD. Anything else could block us (a terminal),
// have no end (a file) or act on a write (a control file).
//
// Add to it by a Caller: the peer can make a write of ours wait.
func AdoptEventFD(fd int) (*EventFD, error) {
	if err := checkEventFD(fd); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", ErrBadFD), err, unix.Close(fd))
	}
	return &EventFD{fd: fd}, nil
}

func checkEventFD(fd int) error {
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err == nil && link == "anon_inode:[eventfd]" {
		return nil
	}
	if err == nil {
		return fmt.Errorf("eventfd expected: %w", ErrBadFD)
	}
	// Without /proc: an anonymous inode is the only kind without a file type.
	var st unix.Stat_t
	if serr := unix.Fstat(fd, &st); serr != nil || st.Mode&unix.S_IFMT != 0 {
		return fmt.Errorf("eventfd expected: %w", ErrBadFD)
	}
	return nil
}

// FD returns the descriptor, -1 for a nil counter.
func (e *EventFD) FD() int {
	if e == nil {
		return -1
	}
	return e.fd
}

// Signal adds one. A counter that is full has woken its reader already, so
// that is no error.
func (e *EventFD) Signal() error {
	for {
		_, err := unix.Write(e.fd, eventOne[:])
		switch {
		case err == nil, errors.Is(err, unix.EAGAIN):
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("eventfd: %w", err)
		}
	}
}

// signalIfReady is Signal for a counter that the peer can make block, as far as
// looking first goes.
func (e *EventFD) signalIfReady() error {
	poll := [1]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(poll[:], 0); err == nil && n == 0 {
		return nil
	}
	return e.Signal()
}

// Close closes the descriptor.
func (e *EventFD) Close() error { return unix.Close(e.fd) }
