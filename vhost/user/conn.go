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

	hdr [HeaderSize]byte
	buf [MaxPayload]byte
	oob []byte
	out []byte
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
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return errors.Join(err, serr)
}

// PeerPID returns the process at the other end when it connected or listened,
// 0 if the kernel does not say.
func (c *Conn) PeerPID() int {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// Recv waits for the next message and takes it: Await, then Take.
func (c *Conn) Recv(m *Message) error {
	m.FDs, m.Payload = m.FDs[:0], nil
	if _, err := c.Await(); err != nil {
		return err
	}
	return c.Take(m)
}

// Take takes the message off the socket that Await has found there. The payload is
// valid until the next call; the descriptors belong to m. On an error no descriptor
// stays open.
//
// The descriptors of a message arrive with its first byte, so only the header
// is read by recvmsg with control space; descriptors that a peer hangs on the
// payload are discarded by the kernel.
func (c *Conn) Take(m *Message) (err error) {
	m.FDs, m.Payload = m.FDs[:0], nil
	defer func() {
		if err != nil {
			m.CloseFDs()
		}
	}()
	raw, err := c.c.SyscallConn()
	if err != nil {
		return peerError(err)
	}
	// Control knows no deadline: all of it is there, and what has been begun is ended whoever pauses us.
	if cerr := raw.Control(func(fd uintptr) { err = c.take(int(fd), m) }); cerr != nil {
		return peerError(cerr)
	}
	return err
}

func (c *Conn) take(fd int, m *Message) error {
	for have := 0; have < HeaderSize; {
		n, oobn, flags, err := recvmsg(fd, c.hdr[have:], c.oob)
		if oobn > 0 { // also beside an error: what has arrived is ours to close
			m.FDs = appendFDs(m.FDs, c.oob[:oobn])
		}
		switch {
		case err != nil:
			return peerError(err)
		case flags&unix.MSG_CTRUNC != 0 || len(m.FDs) > maxFDs:
			return fmt.Errorf("message: %w", ErrTruncatedFDs)
		case n == 0:
			return peerError(io.EOF)
		}
		have += n
	}
	if err := m.Header.Decode(c.hdr[:]); err != nil {
		return err
	}
	m.Payload = c.buf[:m.Size]
	for have := 0; have < int(m.Size); {
		n, _, _, err := recvmsg(fd, m.Payload[have:], nil)
		switch {
		case err != nil:
			return peerError(err)
		case n == 0:
			return peerError(io.EOF)
		}
		have += n
	}
	return nil
}

// Send writes one message with its descriptors, which stay the caller's.
func (c *Conn) Send(r Request, flags uint32, payload []byte, fds ...int) error {
	h := Header{Request: r, Flags: flags, Size: uint32(len(payload))}
	c.out = append(c.out[:0], make([]byte, HeaderSize)...)
	h.Encode(c.out)
	c.out = append(c.out, payload...)
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
