package fdstore

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Errors to test for with errors.Is.
var (
	ErrName    = errors.New("not a name for a kept descriptor")
	ErrDamaged = errors.New("it cannot be read")
	ErrTooBig  = errors.New("more than there is room for")
)

// Names of the environment.
const (
	notifyEnv = "NOTIFY_SOCKET"
	countEnv  = "LISTEN_FDS"
	namesEnv  = "LISTEN_FDNAMES"
	pidEnv    = "LISTEN_PID"
	keeperEnv = "RSCCTL_KEEPER"      // set by Keep: the descriptor of the channel to it, instead of a NOTIFY_SOCKET
	lifeEnv   = "RSCCTL_KEEPER_LIFE" // the number of the child's life, from 1
	firstFD   = 3
	maxName   = 255
	maxNames  = 120 << 10 // bytes of all names: they are one variable of the next process, and Linux takes 128 KiB of each (MAX_ARG_STRLEN)

	sendWithin = time.Second // a store that does not listen any more must not hold who tells it something
)

// MainWithin is how long Main and Wait take together at most, of a service manager that does not answer: two words and an answer.
const MainWithin = 3 * sendWithin

// Store is a store of descriptors. Its methods are safe for concurrent use.
type Store struct {
	path string
	mu   sync.Mutex // one name, one file: what is told arrives in order
	fd   int

	names map[string]bool // of what is kept, as far as this process knows
	bytes int             // of the names, with what separates them
}

// Open connects to the store that this process was started with. nil without an error: there is none.
func Open() (s *Store, err error) {
	s = &Store{path: os.Getenv(notifyEnv), fd: -1, names: map[string]bool{}}
	switch {
	case InKeeper():
		s.path = fmt.Sprintf("keeper %d", os.Getppid())
		if s.fd, err = strconv.Atoi(os.Getenv(keeperEnv)); err == nil {
			unix.CloseOnExec(s.fd)
		}
	case s.path == "":
		return nil, nil
	default:
		if s.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Connect(s.fd, &unix.SockaddrUnix{Name: s.path})
		}
	}
	if err == nil {
		wait := unix.NsecToTimeval(sendWithin.Nanoseconds())
		err = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait)
	}
	if err != nil {
		if s.fd >= 0 {
			_ = unix.Close(s.fd)
		}
		return nil, fmt.Errorf("descriptor store %s: %w", s.path, err)
	}
	return s, nil
}

// Path tells stores apart: two processes with the same one share what is kept. "" for nil.
func (s *Store) Path() string {
	if s == nil {
		return ""
	}
	return s.path
}

// InKeeper says whether a keeper of ours started this process.
func InKeeper() bool { return os.Getenv(keeperEnv) != "" }

// Again says whether a keeper of ours started this process because the one before it died, with the same arguments.
func Again() bool {
	life, err := strconv.Atoi(os.Getenv(lifeEnv))
	return err == nil && life > 1
}

// Put keeps a duplicate of fd under a name, in place of what was kept under it. systemd keeps one file under one name, whatever else it
// is put under. ErrTooBig: the names of all that is kept would be too long for a next process to start with.
func (s *Store) Put(name string, fd int) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.names[name] && s.bytes+len(name)+1 > maxNames {
		return fmt.Errorf("descriptor store: %s: names of %d bytes with those of %d others: %w", name, s.bytes+len(name)+1, len(s.names), ErrTooBig)
	}
	s.count(name)
	// FDPOLL=0: a connection whose other end has gone must stay until we say so.
	return s.sendLocked("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(fd))
}

// Drop closes what is kept under a name. A name that is not kept is no error.
func (s *Store) Drop(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] {
		delete(s.names, name)
		s.bytes -= len(name) + 1
	}
	return s.sendLocked("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// Empty drops all that this process knows to be kept, and waits until it is closed.
func (s *Store) Empty() (err error) {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.names))
	s.mu.Unlock()
	for _, name := range names {
		err = errors.Join(err, s.Drop(name))
	}
	return errors.Join(err, s.Wait())
}

// Has tells that something is kept under these names since a process before. A nil Store keeps nothing.
func (s *Store) Has(names ...string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		s.count(name)
	}
}

// count notes a name. The caller holds mu.
func (s *Store) count(name string) {
	if !s.names[name] {
		s.names[name] = true
		s.bytes += len(name) + 1
	}
}

// Ready tells that what was inherited is in use.
func (s *Store) Ready() error { return s.Tell("READY=1") }

// Tell tells the service manager, or the keeper, lines of sd_notify(3). A nil Store is nobody.
func (s *Store) Tell(lines ...string) error {
	if s == nil {
		return nil
	}
	return s.send(strings.Join(lines, "\n"), nil)
}

// Main tells the service manager that a process is the service from now on. When Wait has returned it knows. A nil Store
// is nobody.
func (s *Store) Main(pid int) error { return s.Tell("MAINPID=" + strconv.Itoa(pid)) }

// Wait returns when all that was put, dropped and told before is done: a socket that was dropped may be in the way of the next one until then.
// With a nil Store that is at once.
func (s *Store) Wait() error {
	if s == nil {
		return nil
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("descriptor store: %w", err)
	}
	defer unix.Close(pipe[0])
	err := s.send("BARRIER=1", unix.UnixRights(pipe[1]))
	_ = unix.Close(pipe[1])
	if err != nil {
		return err
	}
	// sd_notify_barrier(3): the manager closes the descriptor when it has dealt with all before.
	if err := Readable(pipe[0], sendWithin); err != nil {
		return fmt.Errorf("descriptor store: the service manager does not answer: %w", err)
	}
	return nil
}

// Readable waits until a descriptor can be read or its other end is closed, for at most so long: ETIMEDOUT. Signals, which the runtime sends
// itself, end no wait.
func Readable(fd int, within time.Duration) error {
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(end).Milliseconds())))
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return err
		case !time.Now().Before(end):
			return unix.ETIMEDOUT
		}
	}
}

func (s *Store) send(text string, rights []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendLocked(text, rights)
}

func (s *Store) sendLocked(text string, rights []byte) error {
	if err := unix.Sendmsg(s.fd, []byte(text), rights, nil, 0); err != nil {
		return fmt.Errorf("descriptor store: %w", err)
	}
	return nil
}

// Close ends the use of the store. What is kept stays.
func (s *Store) Close() error { return unix.Close(s.fd) }

// checkName: what sd_notify(3) allows in FDNAME.
func checkName(name string) error {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
		return fmt.Errorf("descriptor store: %q: %w", name, ErrName)
	}
	return nil
}

// Inherited are the descriptors that were kept for this process, by name, close-on-exec and the caller's. It is for one call at the
// start: it takes the variables out of the environment.
func Inherited() (map[string]int, error) {
	count, names, pid := os.Getenv(countEnv), os.Getenv(namesEnv), os.Getenv(pidEnv)
	for _, name := range []string{countEnv, namesEnv, pidEnv} {
		_ = os.Unsetenv(name)
	}
	if count == "" || (!InKeeper() && pid != strconv.Itoa(os.Getpid())) {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	list := strings.Split(names, ":")
	if err != nil || n < 0 || n > 1<<16 || (n > 0 && len(list) != n) {
		return nil, fmt.Errorf("descriptor store: %s=%q and %d names: %w", countEnv, count, len(list), ErrDamaged)
	}
	out := map[string]int{}
	for i := range n {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		if old, twice := out[list[i]]; twice { // the later one was put later
			_ = unix.Close(old)
		}
		out[list[i]] = fd
	}
	return out, nil
}
