package user

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Await waits until all of the next message has arrived, and leaves it in the
// socket: whoever stops here, however suddenly, has taken nothing of it, and who
// comes after finds it. It returns the message's header, which is the zero value
// where Look will refuse it. The errors are those of a connection that has ended,
// ErrTimeout for a peer that stops in the middle of a message, and ErrPaused.
func (c *Conn) Await() (Header, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return Header{}, peerError(err)
	}
	var until time.Time // between messages there is no limit
	for have := 0; ; {
		if err := c.readUntil(until); err != nil {
			return Header{}, err
		}
		var now arrived
		var lerr error
		err := raw.Read(func(fd uintptr) bool {
			now, lerr = lookAhead(int(fd), have)
			return lerr != nil || now.ended || now.whole || now.bytes > have
		})
		switch {
		case err != nil && c.isPaused():
			return Header{}, fmt.Errorf("connection: %w", ErrPaused)
		case errors.Is(err, os.ErrDeadlineExceeded) && (until.IsZero() || time.Now().Before(until)):
			// Not the peer's time is up: a Pause woke us, and Unpause came before we saw it.
		case err != nil:
			return Header{}, peerError(err)
		case lerr != nil:
			return Header{}, peerError(lerr)
		case now.whole:
			return now.header, nil
		case now.ended:
			return Header{}, peerError(io.EOF)
		}
		if have == 0 && now.bytes > 0 {
			until = time.Now().Add(messageTimeout)
		}
		have = max(have, now.bytes)
	}
}

// arrived is what of a message is in the socket.
type arrived struct {
	bytes  int  // of this message and those behind it
	whole  bool // Look need not wait
	ended  bool // and nothing will follow
	header Header
}

// lookAhead looks at the message in the socket without taking anything of it, nor
// of its descriptors.
func lookAhead(fd, known int) (a arrived, err error) {
	var hdr [HeaderSize]byte
	n, err := peek(fd, hdr[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return a, nil
	case err != nil:
		return a, err
	case n == 0:
		return arrived{ended: true}, nil
	}
	if a.bytes, err = unix.IoctlGetInt(fd, unix.SIOCINQ); err != nil { // of a stream all that waits, unix(7)
		return a, err
	}
	if n < HeaderSize && a.bytes >= HeaderSize {
		// A look ends behind a piece that has descriptors.
		if n, err = peekOn(fd, hdr[:], n); err != nil {
			return a, err
		}
	}
	if n == HeaderSize {
		if a.header.Decode(hdr[:]) != nil {
			return arrived{bytes: a.bytes, whole: true}, nil
		}
		a.whole = a.bytes-HeaderSize >= int(a.header.Size)
	}
	if !a.whole && a.bytes <= known {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, _ = unix.Poll(poll, 0)
		a.ended = poll[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	}
	return a, nil
}

// peek looks at the first bytes, as many as are in the first pieces up to one that
// has descriptors.
func peek(fd int, b []byte) (n int, err error) {
	for {
		n, _, err = unix.Recvfrom(fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// peekOn goes on where peek ended, until b is full.
func peekOn(fd int, b []byte, have int) (int, error) {
	defer noPeekOffset(fd)
	for have < len(b) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, have); err != nil {
			return have, os.NewSyscallError("setsockopt", err)
		}
		n, err := peek(fd, b[have:])
		if err != nil || n <= 0 {
			return have, err
		}
		have += n
	}
	return have, nil
}

// noPeekOffset makes a look begin at the first byte, which is where it does unless
// somebody who had the socket before died in peekOn.
func noPeekOffset(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1) }

// recvmsg reads without waiting, descriptors into oob.
func recvmsg(fd int, b, oob []byte, how int) (n, oobn, flags int, err error) {
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, b, oob, how|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return n, oobn, flags, err
		}
	}
}

// Pause makes Await return ErrPaused, now and until Unpause. What has been taken is
// taken whole, and what is sent is sent.
func (c *Conn) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = true
	_ = c.c.SetReadDeadline(time.Unix(1, 0))
}

// Unpause ends Pause.
func (c *Conn) Unpause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = false // the next Await sets its own deadline
}

func (c *Conn) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

func (c *Conn) readUntil(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		return fmt.Errorf("connection: %w", ErrPaused)
	}
	if err := c.c.SetReadDeadline(t); err != nil {
		return peerError(err)
	}
	return nil
}

// fd is the socket's descriptor, which stays c's. Its number is good until Close.
func (c *Conn) fd() int {
	fd := -1
	_ = c.control(func(n int) error {
		fd = n
		return nil
	})
	return fd
}

// AdoptConn returns a connection that another process had, or this one before. fd is
// the connection's afterwards, and is closed on an error, ErrParcel: it is no connected
// Unix stream socket.
func AdoptConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	if f == nil {
		return nil, fmt.Errorf("connection: descriptor %d: %w", fd, ErrParcel)
	}
	defer f.Close() // FileConn works on a copy
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("connection: no stream socket: %w", ErrParcel)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return nil, fmt.Errorf("connection: %w: %w", ErrParcel, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connection: %w: %w", ErrParcel, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connection: no Unix socket: %w", ErrParcel), c.Close())
	}
	noPeekOffset(fd)
	return u, nil
}
