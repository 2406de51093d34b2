package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is one captured frame.
type Frame struct {
	Data    []byte // Ethernet first; the outer tag is not in it
	TCI     uint16 // the outer 802.1Q tag, if Tagged
	TPID    uint16
	Tagged  bool
	Partial bool // its checksum is only the pseudo-header's sum
	Out     bool // sent by this side, not received
}

// Capture reads the frames of one side's interface, from the moment it was opened. One goroutine.
type Capture struct {
	fd  int
	t   testing.TB
	buf []byte
	oob []byte
	out bool
}

// captureBuffer bounds what waits unread, in bytes of kernel memory: 32 MiB is about 15,000 frames of 1500 bytes.
const captureBuffer = 32 << 20

// Capture opens a packet socket on the side's interface for what it receives. It is closed when the test ends. Frames
// that an XDP program took are not seen.
func (s *Side) Capture(t testing.TB) *Capture {
	t.Helper()
	return s.capture(t, false)
}

// CaptureAll is Capture of received and sent frames.
func (s *Side) CaptureAll(t testing.TB) *Capture {
	t.Helper()
	return s.capture(t, true)
}

func (s *Side) capture(t testing.TB, out bool) *Capture {
	t.Helper()
	c := &Capture{t: t, buf: make([]byte, 1<<17), oob: make([]byte, 256), out: out}
	s.Do(t, func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(c.fd) })
		return c.setup(s.Index)
	})
	return c
}

func (c *Capture) setup(ifindex int) error {
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		return fmt.Errorf("capture: receive buffer: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("capture: auxiliary data: %w", err)
	}
	if !c.out {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("capture: ignore outgoing: %w", err)
		}
	}
	addr := &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8, Ifindex: ifindex}
	if err := unix.Bind(c.fd, addr); err != nil {
		return fmt.Errorf("capture: bind: %w", err)
	}
	return nil
}

// Poll returns the next frame, or false when none came within the time.
func (c *Capture) Poll(timeout time.Duration) (Frame, bool) {
	c.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		left := max(time.Until(deadline), 0)
		ts := unix.NsecToTimespec(int64(left))
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, &ts, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			c.t.Fatalf("capture: poll: %v", err)
		}
		if n == 0 {
			return Frame{}, false
		}
		if f, ok := c.read(); ok {
			return f, true
		}
	}
}

// Next returns the next frame and fails the test when none comes in time.
func (c *Capture) Next(timeout time.Duration) Frame {
	c.t.Helper()
	f, ok := c.Poll(timeout)
	if !ok {
		c.t.Fatalf("capture: no frame within %v", timeout)
	}
	return f
}

// Patience is how long to wait for what takes at most d here: longer in an emulated machine, whose other processors may be at work
// for somebody else. What waits so asks whether something happens, never how fast.
func Patience(d time.Duration) time.Duration {
	if Emulated() {
		return 6 * d
	}
	return d
}

// Emulated says that this machine is an emulated one, as test/hostvm sets it.
func Emulated() bool { return os.Getenv("RSCCTL_INSIDE") != "" }

// Until returns the first frame that satisfies match, passing over others, and fails the test when none comes in time.
func (c *Capture) Until(timeout time.Duration, match func(f Frame) bool) Frame {
	c.t.Helper()
	deadline := time.Now().Add(Patience(timeout))
	for seen := 0; ; seen++ {
		f, ok := c.Poll(time.Until(deadline))
		if !ok {
			c.t.Fatalf("capture: none of %d frames matched within %v", seen, timeout)
		}
		if match(f) {
			return f
		}
	}
}

// Drain returns all that comes until the wire was silent for that long.
func (c *Capture) Drain(silence time.Duration) []Frame {
	c.t.Helper()
	var all []Frame
	for {
		f, ok := c.Poll(silence)
		if !ok {
			return all
		}
		all = append(all, f)
	}
}

// Dropped is the number of frames lost because they were not read in time, since the last call.
func (c *Capture) Dropped() uint32 {
	c.t.Helper()
	s, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		c.t.Fatalf("capture: statistics: %v", err)
	}
	return s.Drops
}

func (c *Capture) read() (Frame, bool) {
	c.t.Helper()
	n, oobn, _, from, err := unix.Recvmsg(c.fd, c.buf, c.oob, unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		return Frame{}, false
	case err != nil:
		c.t.Fatalf("capture: receive: %v", err)
	}
	f := Frame{Data: append([]byte(nil), c.buf[:n]...)}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Out = ll.Pkttype == unix.PACKET_OUTGOING
	}
	msgs, err := unix.ParseSocketControlMessage(c.oob[:oobn])
	if err != nil {
		c.t.Fatalf("capture: control message: %v", err)
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
			f.auxiliary(m.Data)
		}
	}
	return f, true
}

// auxiliary reads struct tpacket_auxdata: status, len, snaplen (u32), mac, net, vlan_tci, vlan_tpid (u16).
func (f *Frame) auxiliary(b []byte) {
	if len(b) < 20 {
		return
	}
	status := binary.NativeEndian.Uint32(b)
	f.Partial = status&unix.TP_STATUS_CSUMNOTREADY != 0
	if status&unix.TP_STATUS_VLAN_VALID == 0 {
		return
	}
	f.Tagged, f.TCI, f.TPID = true, binary.NativeEndian.Uint16(b[16:]), unix.ETH_P_8021Q
	if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		f.TPID = binary.NativeEndian.Uint16(b[18:])
	}
}
