package user

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Drain takes the counter's value and leaves 0; it returns 0 if there was
// nothing. RWF_NOWAIT holds for this one read whatever flags the peer has set
// on the open file. A kick whose counter is costly to read is taken off what we
// sleep on, counts as 1, and stays in the counter. It allocates nothing.
func (e *EventFD) Drain() uint64 {
	if e == nil {
		return 0
	}
	e.mu.RLock() // the call below does not wait
	defer e.mu.RUnlock()
	if e.closed {
		return 0
	}
	if e.watched && e.cost.spare() {
		var event [1]unix.EpollEvent
		n, _ := unix.EpollWait(e.watch, event[:], 0)
		return uint64(max(n, 0))
	}
	var v uint64
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&v)), Len: 8}
	const noPosition = ^uintptr(0)
	before := e.cost.begin()
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(e.fd), uintptr(unsafe.Pointer(&iov)), 1,
		noPosition, noPosition, unix.RWF_NOWAIT)
	e.cost.end(before)
	if errno != 0 || n != 8 {
		return 0
	}
	return v
}
