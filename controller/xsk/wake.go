package xsk

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// errDown is built once: a worker may get it in every burst while the interface is down.
var errDown = fmt.Errorf("xsk: send: %w", ErrDown)

// wake tells the kernel to send. In copy mode the call sends, at most txBudget frames each time, so it is repeated while the
// kernel takes frames off the ring and there are more.
func (s *Socket) wake() error {
	for {
		before := atomic.LoadUint32(s.tx.consumer)
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0, unix.EAGAIN, unix.EBUSY, unix.ENOBUFS, unix.EINTR: // what is left goes next time
		case unix.ENETDOWN:
			return errDown
		default:
			return fmt.Errorf("xsk: send: %w", errno)
		}
		now := atomic.LoadUint32(s.tx.consumer)
		if now == s.tx.cachedP || now-before < uint32(s.txBudget) {
			return nil
		}
		s.reap() // the completion ring bounds what the kernel takes
	}
}
