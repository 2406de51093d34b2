package user

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Caller adds to the eventfds of peers and never waits, whatever the peer does.
//
// write(2) would not do: O_NONBLOCK belongs to the open file, which the peer
// shares, so it can take the flag away again, fill the counter and hold the
// thread that serves other guests too; looking first only narrows the gap. The
// kernel itself adds to an eventfd without waiting when an asynchronous read
// completes (io_submit(2), IOCB_FLAG_RESFD). So a Caller reads nothing from an
// empty file, which completes within the system call. Where asynchronous I/O is
// not to be had (a kernel without it, a filter, fs.aio-max-nr used up, by whatever
// user), and where an eventfd is costly to tell (see meter), a goroutine of the
// Caller's own writes; the peer can hold that one only.
//
// Safe for concurrent use but for Close.
type Caller struct {
	ctx  uintptr // 0: no asynchronous I/O here
	file int

	once   sync.Once
	ringer *ringer // made when it is needed
}

// callerEvents is how many calls may be made before their completions, which
// say nothing, are taken from the kernel. It counts against fs.aio-max-nr.
const callerEvents = 32

// iocb is struct iocb of linux/aio_abi.h, little-endian.
type iocb struct {
	_      [2]uint64 // data, key, rw_flags
	opcode uint16
	_      int16 // priority
	file   uint32
	_      [4]uint64 // buffer, bytes, offset, reserved
	flags  uint32
	event  uint32 // the eventfd
}

const (
	iocbRead     = 0 // IOCB_CMD_PREAD
	iocbSignal   = 1 // IOCB_FLAG_RESFD
	ioEventBytes = 32
)

// NewCaller sets up the kernel's side.
func NewCaller() (*Caller, error) {
	file, err := unix.MemfdCreate("rscctl-call", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("caller: memfd: %w", err)
	}
	c := &Caller{file: file}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, callerEvents, uintptr(unsafe.Pointer(&c.ctx)), 0); errno != 0 {
		c.ctx = 0
	}
	return c, nil
}

// Asynchronous says whether the kernel adds to the counters. If not, see
// fs.aio-max-nr and fs.aio-nr in /proc/sys.
func (c *Caller) Asynchronous() bool { return c.ctx != 0 }

// Call adds one to e, or sees to it that something will be added at once. A
// counter that is full has woken its reader already, so that is no error. It
// allocates nothing.
func (c *Caller) Call(e *EventFD) error {
	if c.ctx == 0 || e.cost.spare() {
		return c.callByHand(e)
	}
	cb := iocb{opcode: iocbRead, file: uint32(c.file), flags: iocbSignal, event: uint32(e.fd)}
	list := [1]*iocb{&cb}
	for range 4 { // others may use up what has been made free
		before := e.cost.begin()
		_, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, c.ctx, 1, uintptr(unsafe.Pointer(&list)))
		e.cost.end(before)
		switch errno {
		case 0:
			return nil
		case unix.EAGAIN: // every place holds a completion
			c.forget()
		default:
			return fmt.Errorf("call: %w", errno)
		}
	}
	return c.callByHand(e)
}

func (c *Caller) callByHand(e *EventFD) error {
	c.once.Do(func() { c.ringer = newRinger() })
	return c.ringer.call(e)
}

// forget takes the completions from the kernel.
func (c *Caller) forget() {
	var events [callerEvents * ioEventBytes]byte
	var now unix.Timespec
	_, _, _ = unix.Syscall6(unix.SYS_IO_GETEVENTS, c.ctx, 0, callerEvents,
		uintptr(unsafe.Pointer(&events)), uintptr(unsafe.Pointer(&now)), 0)
}

// Close gives everything back to the kernel. Nobody may call any more.
func (c *Caller) Close() error {
	if ctx := c.ctx; ctx != 0 {
		// It waits out a grace period of RCU, tens of milliseconds; a controller may have
		// hundreds of ports to close. Its one error is a context that is none.
		go func() { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0) }()
		c.ctx = 0
	}
	c.once.Do(func() {}) // nobody makes one any more
	if r := c.ringer; r != nil {
		go r.close() // a peer may hold it
	}
	return unix.Close(c.file)
}
