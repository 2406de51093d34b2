package user

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends are the two ends of a connection: ours, and the peer's descriptor.
func ends(t *testing.T) (*Conn, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := AdoptConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	conn := NewConn(c)
	t.Cleanup(func() {
		_ = conn.Close()
		_ = unix.Close(pair[1])
	})
	return conn, pair[1]
}

func write(t *testing.T, fd int, b []byte, fds ...int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(fd, b, oob, nil, 0); err != nil {
		t.Fatal(err)
	}
}

// In whatever pieces a message comes, and with descriptors on whichever of them, it is read when it is whole and not before, it stays
// until it is taken, and what a pause finds of it stays. The descriptors of the next one are not its.
func TestAMessageIsTakenWholeOrNotAtAll(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const payload = 40
	h := Header{Request: SetMemTable, Flags: FlagVersion, Size: payload}
	m := make([]byte, HeaderSize+payload)
	h.Encode(m)
	for i := range payload {
		m[HeaderSize+i] = byte(i)
	}
	for _, cuts := range [][]int{{}, {1}, {5}, {11}, {12}, {13}, {30}, {1, 2}, {4, 12}, {3, 20}, {12, 51}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}} {
		for withFDs := range len(cuts) + 2 { // the last is none
			c, peer := ends(t)
			from := 0
			for i, to := range append(cuts, len(m)) {
				c.Pause()
				if _, err := c.Await(); !errors.Is(err, ErrPaused) {
					t.Fatalf("paused: %v", err)
				}
				c.Unpause()
				time.AfterFunc(time.Millisecond, c.Pause) // in the middle of it
				if _, err := c.Await(); !errors.Is(err, ErrPaused) {
					t.Fatalf("cuts %v, before piece %d: %v", cuts, i, err)
				}
				c.Unpause()
				var fds []int
				if i == withFDs {
					fds = []int{int(null.Fd())}
				}
				write(t, peer, m[from:to], fds...)
				from = to
			}
			write(t, peer, m, int(null.Fd())) // and the next one behind it
			if got, err := c.Await(); err != nil || got != h {
				t.Fatalf("cuts %v: %+v, %v", cuts, got, err)
			}
			c.Pause() // too late
			var msg Message
			want := 1
			if withFDs > len(cuts) {
				want = 0
			}
			for range 2 { // whoever looks first may die
				if err := c.Look(&msg); err != nil || msg.Header != h || !bytes.Equal(msg.Payload, m[HeaderSize:]) {
					t.Fatalf("cuts %v: %+v, %v", cuts, msg, err)
				}
				if len(msg.FDs) != want {
					t.Errorf("cuts %v, descriptors with piece %d: %d came", cuts, withFDs, len(msg.FDs))
				}
				msg.CloseFDs()
			}
			if err := c.Drop(); err != nil || !bytes.Equal(msg.Payload, m[HeaderSize:]) {
				t.Fatalf("cuts %v: %v", cuts, err)
			}
			c.Unpause()
			if err := c.Recv(&msg); err != nil || !bytes.Equal(msg.Payload, m[HeaderSize:]) || len(msg.FDs) != 1 {
				t.Errorf("cuts %v: the next one: %v, %d descriptors", cuts, err, len(msg.FDs))
			}
			msg.CloseFDs()
		}
	}
}

func TestAPeerThatGoesInAMessageIsGone(t *testing.T) {
	m := make([]byte, HeaderSize+8)
	(&Header{Request: SetFeatures, Flags: FlagVersion, Size: 8}).Encode(m)
	for n := range m {
		for _, early := range []bool{true, false} {
			c, peer := ends(t)
			if n > 0 {
				write(t, peer, m[:n])
			}
			if early {
				_ = unix.Shutdown(peer, unix.SHUT_RDWR)
			} else {
				time.AfterFunc(time.Millisecond, func() { _ = unix.Shutdown(peer, unix.SHUT_RDWR) })
			}
			if _, err := c.Await(); !errors.Is(err, ErrDisconnected) {
				t.Errorf("after %d bytes: %v", n, err)
			}
		}
	}
}

// Whoever died while it looked at a message has left a mark on the socket, which belongs to the socket and not to a process.
func TestAnAdoptedConnectionIsReadFromItsFirstByte(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	if err := unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEEK_OFF, 5); err != nil {
		t.Fatal(err)
	}
	u, err := AdoptConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(u)
	defer c.Close()
	b := make([]byte, HeaderSize)
	(&Header{Request: GetFeatures, Flags: FlagVersion}).Encode(b)
	write(t, pair[1], b)
	if h, err := c.Await(); err != nil || h.Request != GetFeatures {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestOnlyAConnectionIsAdopted(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	listening, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	datagrams, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(datagrams[1])
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{listening, datagrams[0], event, -1} {
		what, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if _, err := AdoptConn(fd); !errors.Is(err, ErrParcel) {
			t.Errorf("%s: %v", what, err)
		}
		if err := unix.Close(fd); !errors.Is(err, unix.EBADF) {
			t.Errorf("%s is still open: %v", what, err)
		}
	}
}

// A pause that is withdrawn before the reader has seen it is none: the peer has done nothing wrong, and is not thrown out.
func TestAPauseThatIsWithdrawnAtOnceLeavesTheConnection(t *testing.T) {
	c, peer := ends(t)
	h := Header{Request: GetFeatures, Flags: FlagVersion}
	b := make([]byte, HeaderSize)
	h.Encode(b)
	read := make(chan error, 1)
	for i := range 100 {
		go func() {
			for {
				got, err := c.Await()
				if errors.Is(err, ErrPaused) {
					continue
				}
				if err == nil && got != h {
					err = ErrBadHeader
				}
				read <- err
				return
			}
		}()
		time.Sleep(100 * time.Microsecond) // it waits
		c.Pause()
		c.Unpause()
		write(t, peer, b)
		if err := <-read; err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		var m Message
		if err := errors.Join(c.Look(&m), c.Drop()); err != nil {
			t.Fatal(err)
		}
	}
}
