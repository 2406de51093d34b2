package xsk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// errDown is built once: a worker may get it in every burst while the interface is down.
var errDown = fmt.Errorf("xsk: send: %w", ErrDown)

// wake tells the kernel to send. In copy mode the call itself sends, at most txBudget frames, and says EAGAIN when it left
// some, so it is repeated as often as the frames on their way can need. The ring's consumer index would not tell: the kernel
// stores it only when it has run out of the entries it knows of (net/xdp/xsk_queue.h).
func (s *Socket) wake() error {
	for range 1 + s.txPending/s.txBudget {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.parts.Socket), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0, unix.EBUSY, unix.ENOBUFS: // the queue is full or busy: what is left goes with the next Flush
			return nil
		case unix.EAGAIN, unix.EINTR:
			s.reap() // a full completion ring may be what stopped it
		case unix.ENETDOWN:
			return errDown
		default:
			return fmt.Errorf("xsk: send: %w", errno)
		}
	}
	return nil
}

// wakeRx tells the kernel to go on receiving. Error: ENXIO when the socket is bound no more, ENETDOWN.
func (s *Socket) wakeRx() error {
	_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.parts.Socket), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
