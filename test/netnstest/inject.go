package netnstest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Injector puts raw frames on the wire from one side.
type Injector struct {
	fd   int
	addr unix.SockaddrLinklayer
}

// Injector opens a packet socket for sending, closed when the test ends. The frames it sends carry no offload claims:
// they are on the wire as given, also with wrong checksums.
func (s *Side) Injector(t testing.TB) *Injector {
	t.Helper()
	in := &Injector{addr: unix.SockaddrLinklayer{Ifindex: s.Index}}
	s.Do(t, func() (err error) {
		// Protocol 0: it receives nothing.
		in.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(in.fd) })
	return in
}

// Send sends one frame, Ethernet first. At most MTU+14 bytes, 4 more with an 802.1Q tag. While a device has no room, as on a slow
// machine that takes a flood, it tries again for a while.
func (in *Injector) Send(frame []byte) error {
	err := unix.Sendto(in.fd, frame, 0, &in.addr)
	for end := time.Now().Add(time.Second); errors.Is(err, unix.ENOBUFS) && time.Now().Before(end); {
		time.Sleep(20 * time.Microsecond)
		err = unix.Sendto(in.fd, frame, 0, &in.addr)
	}
	if err != nil {
		return fmt.Errorf("inject %d bytes: %w", len(frame), err)
	}
	return nil
}

// Inject sends frames from this side, in order.
func (s *Side) Inject(t testing.TB, frames ...[]byte) {
	t.Helper()
	in := s.Injector(t)
	for i, f := range frames {
		if err := in.Send(f); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
}
