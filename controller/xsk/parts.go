package xsk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Parts are the descriptors that a Socket is made of. Whoever holds them keeps it receiving and sending, and can make a Socket
// of them again, in any process.
type Parts struct {
	Socket int // AF_XDP, bound
	Umem   int // memory file of the chunks
	Owners int // memory file that says who has each chunk
}

// Parts returns the socket's descriptors, valid until Close.
func (s *Socket) Parts() Parts { return s.parts }

// Adoptable reports whether the kernel lets another process have the socket: it maps the rings of one that is bound (Linux 6.4).
func (s *Socket) Adoptable() bool {
	m, err := unix.Mmap(s.parts.Socket, unix.XDP_PGOFF_RX_RING, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return false
	}
	_ = unix.Munmap(m)
	return true
}

// each lists the descriptors that are there, each number once.
func (p Parts) each() (fds []int) {
	if p.Socket >= 0 {
		fds = append(fds, p.Socket)
	}
	if p.Umem >= 0 && p.Umem != p.Socket {
		fds = append(fds, p.Umem)
	}
	if p.Owners >= 0 && p.Owners != p.Socket && p.Owners != p.Umem {
		fds = append(fds, p.Owners)
	}
	return fds
}

func (p Parts) close() error {
	var errs []error
	for _, fd := range p.each() {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// Adopt makes a Socket of the descriptors of one that is not used any more: its process has died at any instruction, or has
// stopped using it. c is what that one was opened with. Adopt takes the descriptors over: Close closes them, and so does
// Adopt when it fails.
//
// Everything goes on from what is in the shared memory. Frames that wait in the RX ring come next; those that the last
// owner had taken are gone and their chunks in the pool; frames that it had published for sending count as TxPending, those
// that it had not are gone. The fill ring stays as it is: call Refill, then Flush, also when nothing was sent: the kernel may
// have been left asleep, and the first Flush wakes both directions whatever the flags say.
//
// Two Sockets may exist over the same parts (an owner that holds duplicates in order to go on when its heir fails); only one
// may be used at a time, and one that has been idle while another was used must be adopted again.
//
// Errors: ErrConfig; ErrParts: not the descriptors of this queue's socket, and of which what is wrong; ErrNoDevice: the
// interface has gone; ErrUnsupported: the kernel maps no ring of a bound socket (before Linux 6.4): open a new one.
func Adopt(c Config, p Parts) (*Socket, error) { return begun(AdoptAhead(c, p)) }

// AdoptAhead is Adopt for a socket that its owner still uses: it maps everything, which takes milliseconds, and touches no ring. Begin
// is the rest, once the owner does not use it any more. Until then the Socket receives and sends nothing.
func AdoptAhead(c Config, p Parts) (s *Socket, err error) {
	s = newSocket(c, p)
	defer func() {
		if err != nil {
			_ = s.Close() // what is wrong with them is said already
			s, err = nil, fmt.Errorf("xsk: adopt interface %d queue %d: %w", c.Ifindex, c.Queue, err)
		}
	}()
	if err := c.check(); err != nil {
		return s, err
	}
	if err := p.check(c); err != nil {
		return s, err
	}
	n, err := s.mapMemory(c)
	if err != nil {
		return s, err
	}
	if err := n.check(c, p); err != nil {
		return s, err
	}
	if err := s.bound(); err != nil {
		return s, err
	}
	theirs, err := s.mapRings(c)
	if errors.Is(err, unix.EBUSY) {
		return s, fmt.Errorf("rings of a bound socket (before Linux 6.4): %w", ErrUnsupported)
	} else if err != nil {
		return s, err
	}
	s.begin = func() error {
		theirs.reread()
		err, sent := s.bound(), 0
		if bad := s.preferPoll(c.BusyPoll); err == nil && c.BusyPoll { // the last owner may have asked for it
			err = bad
		}
		if err == nil {
			sent, err = s.umem.owner.settle(s.umem.shift, &theirs.rx, &theirs.tx, &theirs.fill, &theirs.comp)
		}
		if err != nil {
			return fmt.Errorf("xsk: adopt interface %d queue %d: %w", c.Ifindex, c.Queue, err)
		}
		s.rings, s.txPending, s.unwoken = theirs, sent, true
		s.umem = newUmem(s.umem.mem, c.ChunkSize, c.FrameSize, s.umem.owner)
		return nil
	}
	s.raiseTxBudget(c)
	return s, s.readMode()
}

// bound tells whether the interface is still there.
func (s *Socket) bound() error {
	if err := s.wakeRx(); errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("socket is bound no more: %w", ErrNoDevice)
	}
	return nil
}

// begun is a socket that was made ahead, at once.
func begun(s *Socket, err error) (*Socket, error) {
	if err == nil {
		if err = s.Begin(); err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}
	return s, err
}

// Begin makes a Socket of AdoptAhead or OpenAhead receive and send. A second call does nothing. With an error nothing of a ring was touched,
// and Close is all that is left. Errors: those of Adopt, or of Open.
func (s *Socket) Begin() error {
	if s.begin == nil {
		return nil
	}
	if err := s.begin(); err != nil {
		return err
	}
	s.begin = nil
	return nil
}

// check looks at the kinds of the descriptors, and keeps them from children. Error: ErrParts.
func (p Parts) check(c Config) error {
	for _, fd := range []struct {
		name   string
		number int
		check  func(fd int) error
	}{
		{"socket", p.Socket, checkSocket},
		{umemName, p.Umem, func(fd int) error { return checkMemory(fd, c.umemSize()) }},
		{ownersName, p.Owners, func(fd int) error { return checkMemory(fd, c.ownersSize()) }},
	} {
		if fd.number < 0 {
			return fmt.Errorf("%s: missing: %w", fd.name, ErrParts)
		}
		if err := fd.check(fd.number); err != nil {
			return fmt.Errorf("%s: %w: %w", fd.name, ErrParts, err)
		}
		if _, err := unix.FcntlInt(uintptr(fd.number), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return fmt.Errorf("%s: %w: %w", fd.name, ErrParts, err)
		}
	}
	return nil
}

func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	if domain != unix.AF_XDP {
		return fmt.Errorf("of family %d, not AF_XDP", domain)
	}
	return nil
}

func checkMemory(fd, size int) error {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("no memory file: %w", err)
	}
	if have&unix.F_SEAL_SHRINK == 0 {
		return errors.New("not sealed: it could shrink")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size != int64(size) {
		return fmt.Errorf("%d bytes, not %d", st.Size, size)
	}
	return nil
}
