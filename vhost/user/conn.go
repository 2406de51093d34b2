package user

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// messageTimeout bounds how long a peer may take to finish a message it has
// begun or to make room for a reply. Between messages there is no limit.
const messageTimeout = 5 * time.Second

// Conn reads and writes messages on a Unix stream socket. One goroutine reads
// and one writes; Close, Pause and Unpause may come from any other.
type Conn struct {
	c *net.UnixConn

	mu     sync.Mutex // guards what follows against Pause
	paused bool

	buf    [HeaderSize + MaxPayload + 1]byte // a message, and room to see that another follows
	looked int                               // bytes of the message in buf that Drop takes off
	oob    []byte
	out    []byte
}

// NewConn takes over c.
func NewConn(c *net.UnixConn) *Conn {
	return &Conn{c: c, oob: make([]byte, unix.CmsgSpace(maxFDs*4))}
}

// Close ends the connection; a blocked Recv returns.
func (c *Conn) Close() error { return c.c.Close() }

// shutdown ends the connection in both directions without waiting for whoever
// reads it.
func (c *Conn) shutdown() error {
	return c.control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
}

// PeerPID returns the process at the other end when it connected or listened,
// 0 if the kernel does not say.
func (c *Conn) PeerPID() (pid int) {
	_ = c.control(func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			pid = int(cred.Pid)
		}
		return err
	})
	return pid
}

// Recv waits for the next message and takes it: Await, Look, then Drop.
func (c *Conn) Recv(m *Message) error {
	m.FDs, m.Payload = m.FDs[:0], nil
	if _, err := c.Await(); err != nil {
		return err
	}
	err := c.Look(m)
	if derr := c.Drop(); err == nil && derr != nil {
		m.CloseFDs()
		return derr
	}
	return err
}

// Look reads the message that Await has found, and leaves it in the socket: who comes
// after a process that dies finds it, until Drop. The payload is valid until the next
// call; the descriptors are duplicates, and belong to m. On an error no descriptor
// stays open.
//
// A message has the descriptors that come with any of its bytes, in the call that ends
// with its last byte or before. A front-end sends each message by a call of its own.
// Of requests that have none, none is installed.
func (c *Conn) Look(m *Message) error {
	m.FDs, m.Payload = m.FDs[:0], nil
	// Control knows no deadline: all of it is there, and what has been begun is ended whoever pauses us.
	err := c.control(func(fd int) error { return c.look(fd, m) })
	if err != nil {
		m.CloseFDs()
	}
	return err
}

// Drop takes the message that Look has read off the socket, or what Look has read of
// it. The payload stays valid.
func (c *Conn) Drop() error {
	return c.control(func(fd int) error {
		b := c.buf[:c.looked]
		c.looked = 0
		return discard(fd, b) // the bytes that are there already
	})
}

// control runs fn on the socket's descriptor, without waiting for it to be readable.
func (c *Conn) control(fn func(fd int) error) error {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return peerError(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return peerError(cerr)
	}
	return err
}

func (c *Conn) look(fd int, m *Message) error {
	c.looked = 0
	n, err := peek(fd, c.buf[:HeaderSize])
	if err == nil && n > 0 && n < HeaderSize { // it came in pieces
		n, err = peekOn(fd, c.buf[:HeaderSize], n)
	}
	switch {
	case err != nil:
		return peerError(err)
	case n < HeaderSize:
		return peerError(io.ErrUnexpectedEOF)
	}
	c.looked = HeaderSize
	if err := m.Header.Decode(c.buf[:]); err != nil {
		return err
	}
	whole := HeaderSize + int(m.Size)
	if err := c.lookWhole(fd, m, whole); err != nil {
		return err
	}
	m.Payload, c.looked = c.buf[HeaderSize:whole], whole
	return nil
}

// lookWhole reads the first bytes of the socket, and the descriptors that are theirs.
func (c *Conn) lookWhole(fd int, m *Message, bytes int) error {
	var oob []byte
	if m.Request.hasFiles() {
		oob = c.oob
	}
	// A look goes on from piece to piece, to the end of the first that has descriptors, or of the buffer: where that is
	// behind the message, they are of one that follows. Linux, net/unix/af_unix.c: unix_stream_read_generic.
	n, oobn, flags, err := recvmsg(fd, c.buf[:], oob, unix.MSG_PEEK)
	if oobn > 0 { // also beside an error: what has arrived is ours to close
		m.FDs = appendFDs(m.FDs, oob[:oobn])
	}
	switch {
	case err != nil:
		return peerError(err)
	case n > bytes:
		m.CloseFDs()
	case oob != nil && flags&unix.MSG_CTRUNC != 0 || len(m.FDs) > maxFDs:
		return fmt.Errorf("message: %w", ErrTruncatedFDs)
	case n < bytes:
		if n, err = peekOn(fd, c.buf[:bytes], n); err != nil {
			return peerError(err)
		}
		if n < bytes {
			return peerError(io.ErrUnexpectedEOF)
		}
	}
	return nil
}

// discard takes len(b) bytes off the socket, which are there, into b. The kernel closes
// the descriptors that come with them.
func discard(fd int, b []byte) error {
	for len(b) > 0 {
		n, _, _, err := recvmsg(fd, b, nil, 0)
		switch {
		case err != nil:
			return peerError(err)
		case n == 0:
			return peerError(io.EOF)
		}
		b = b[n:]
	}
	return nil
}

// Send writes one message with its descriptors, which stay the caller's.
func (c *Conn) Send(r Request, flags uint32, payload []byte, fds ...int) error {
	c.out = appendMessage(c.out[:0], r, flags, payload)
	if err := c.c.SetWriteDeadline(time.Now().Add(messageTimeout)); err != nil {
		return peerError(err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.c.WriteMsgUnix(c.out, oob, nil)
	if err == nil && n < len(c.out) {
		_, err = c.c.Write(c.out[n:])
	}
	if err != nil {
		return peerError(err)
	}
	return nil
}

func appendMessage(b []byte, r Request, flags uint32, payload []byte) []byte {
	h := Header{Request: r, Flags: flags, Size: uint32(len(payload))}
	at := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	h.Encode(b[at:])
	return append(b, payload...)
}

// peerError gives the ways in which a connection ends their sentinel.
func peerError(err error) error {
	switch {
	case errors.Is(err, net.ErrClosed):
		return fmt.Errorf("connection: %w", ErrInterrupted)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("connection: %w", ErrTimeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("connection: %w", ErrDisconnected)
	}
	return fmt.Errorf("connection: %w", err)
}

// appendFDs collects the descriptors of every SCM_RIGHTS block in oob. Blocks
// it cannot read carry none that the kernel has installed.
func appendFDs(fds []int, oob []byte) []int {
	blocks, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fds
	}
	for i := range blocks {
		if got, err := unix.ParseUnixRights(&blocks[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// TakeFD removes the first descriptor from m and returns it; -1 if there is
// none. It is then the caller's to close.
func (m *Message) TakeFD() int {
	if len(m.FDs) == 0 {
		return -1
	}
	fd := m.FDs[0]
	m.FDs = slices.Delete(m.FDs, 0, 1)
	return fd
}

// CloseFDs closes what nobody took.
func (m *Message) CloseFDs() {
	for _, fd := range m.FDs {
		_ = unix.Close(fd)
	}
	m.FDs = m.FDs[:0]
}
