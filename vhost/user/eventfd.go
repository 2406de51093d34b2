package user

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// EventFD is the kernel's counter by which one side of a ring wakes the other.
// Drain never waits, and Signal does not with a counter of our own making. It is
// safe for concurrent use; but whoever has taken a number from FD must be done with
// it before Close, after which it is somebody else's.
type EventFD struct {
	fd      int
	watched bool
	watch   int         // where watched, an epoll instance of ours with fd in it: see AdoptKick
	waits   atomic.Bool // a ringer has a call to make
	cost    *Meter
	serial  uint64 // of a session's, in its name: see Session.State

	mu     sync.RWMutex // Drain against Close: a number is closed under no reader
	closed bool
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
// Add to it by a Caller, because the peer can make a write of ours wait, and adopt
// what is to be read with AdoptKick.
func AdoptEventFD(fd int) (*EventFD, error) {
	if err := checkEventFD(fd); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", ErrBadFD), err, unix.Close(fd))
	}
	return &EventFD{fd: fd}, nil
}

// AdoptKick is AdoptEventFD for a counter that we are to read. One that was made
// with EFD_SEMAPHORE is refused: a read takes 1 off it and not all, so a peer that
// has filled it once would wake us for ever after, at no cost to itself. How the
// counter reads was fixed when it was made.
//
// What we sleep on is an epoll instance of our own with the counter in it, edge by
// edge. To sleep on the counter takes a lock that the peer can hold for
// milliseconds, with watchers by the thousand; and a kick can be taken off without
// reading the counter, which wakes all those watchers.
func AdoptKick(fd int) (*EventFD, error) {
	e, err := AdoptEventFD(fd)
	if err != nil {
		return nil, err
	}
	info, _ := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd)) // "" without /proc
	semaphore, known := semaphoreByInfo(string(info))
	if !known {
		semaphore = e.semaphoreByTrial()
	}
	if semaphore {
		return nil, errors.Join(fmt.Errorf("eventfd with EFD_SEMAPHORE, which never falls silent: %w", ErrBadFD), e.Close())
	}
	if err := e.watchIt(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *EventFD) watchIt() (err error) {
	if e.watch, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("kick: epoll: %w", err)
	}
	e.watched = true
	if err := unix.EpollCtl(e.watch, unix.EPOLL_CTL_ADD, e.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
		return fmt.Errorf("kick: epoll: %w", err)
	}
	return nil
}

// semaphoreByInfo asks the kernel, from Linux 6.5 on.
func semaphoreByInfo(info string) (semaphore, known bool) {
	_, rest, known := strings.Cut(info, "eventfd-semaphore:")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value) != "0", known
}

// semaphoreByTrial adds two and reads. Somebody else may add meanwhile, which does
// no harm; somebody who reads what is ours to read gets no trust: after so many
// trials the counter counts as a semaphore. It ends with a kick pending, should one
// have been read: whoever starts to poll looks at the ring once. (The write could
// wait, if the peer filled the counter and took O_NONBLOCK away just now; that
// would hold this peer's own session.)
func (e *EventFD) semaphoreByTrial() bool {
	defer func() { _ = e.Signal() }()
	e.Drain()
	for range 8 {
		_, _ = unix.Write(e.fd, []byte{0: 2, 7: 0})
		if e.Drain() > 1 {
			return false
		}
	}
	return true
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

// FD returns the descriptor to sleep on, -1 for a nil counter. Unless the counter
// comes from AdoptKick, it is the counter's own, which may be handed on.
func (e *EventFD) FD() int {
	switch {
	case e == nil:
		return -1
	case e.watched:
		return e.watch
	}
	return e.fd
}

// ChargeTo has m measure from now on what a Call or a Drain costs, and send it the
// cheap way when it is too much. Call it before the counter is shared.
func (e *EventFD) ChargeTo(m *Meter) {
	if e != nil {
		e.cost = m
	}
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

// Close closes the descriptor. A Drain of a closed counter finds nothing.
func (e *EventFD) Close() error {
	e.mu.Lock()
	was := e.closed
	e.closed = true
	e.mu.Unlock() // to take the watch off may wait for the peer, and a Drain must not wait for that
	if was {
		return nil
	}
	if e.watched {
		_ = unix.Close(e.watch)
	}
	return unix.Close(e.fd)
}
