package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// rig is a tap in a namespace of its own, read by the test as QEMU would, and a packet socket on it.
type rig struct {
	t    testing.TB
	ns   *netnstest.NS
	tap  *tapvm.Tap
	link netlink.Link
	feed *tap.Packet
	buf  []byte
}

func newRig(t testing.TB, o tapvm.Offload) *rig {
	t.Helper()
	netnstest.Need(t, netnstest.TAP, netnstest.Packets)
	r := &rig{t: t, ns: netnstest.Namespace(t), buf: make([]byte, tapvm.MaxRead)}
	side := &netnstest.Side{NS: r.ns}
	side.Sysctl(t, "net/ipv6/conf/default/disable_ipv6", "1") // the kernel sends nothing of its own
	r.do(func() (err error) {
		if r.tap, err = tapvm.OpenTap("tap0", virtio.HdrSize, o); err != nil {
			return err
		}
		if r.link, err = netlink.LinkByName("tap0"); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(r.link); err != nil {
			return err
		}
		r.feed, err = tap.OpenPacket(r.link.Attrs().Index)
		return err
	})
	t.Cleanup(func() {
		if err := errors.Join(r.feed.Close(), r.tap.Close()); err != nil {
			t.Error(err)
		}
	})
	r.settled()
	return r
}

func (r *rig) do(fn func() error) {
	r.t.Helper()
	if err := r.ns.Do(fn); err != nil {
		r.t.Fatal(err)
	}
}

// settled waits until the kernel has given the interface its queueing discipline: before that, frames vanish.
func (r *rig) settled() {
	r.t.Helper()
	for range 400 {
		up := false
		r.do(func() error {
			l, err := netlink.LinkByName("tap0")
			if err == nil {
				up = l.Attrs().OperState == netlink.OperUp || l.Attrs().OperState == netlink.OperUnknown
			}
			return err
		})
		if up {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.t.Fatal("tap0 does not come up")
}

// noqueue takes the queueing discipline off, so that the sender is told of a full tap.
func (r *rig) noqueue(length int) {
	r.t.Helper()
	r.do(func() error {
		if err := netlink.LinkSetTxQLen(r.link, length); err != nil {
			return err
		}
		return netlink.QdiscReplace(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: r.link.Attrs().Index, Parent: netlink.HANDLE_ROOT}, QdiscType: "noqueue",
		})
	})
}

func (r *rig) statistics() *netlink.LinkStatistics {
	r.t.Helper()
	var s *netlink.LinkStatistics
	r.do(func() error {
		l, err := netlink.LinkByName("tap0")
		if err == nil {
			s = l.Attrs().Statistics
		}
		return err
	})
	return s
}

// read takes the next frame from the tap, waiting for it at most a few seconds. ok is false if none came.
func (r *rig) read() (h virtio.NetHdr, frame []byte, ok bool) {
	r.t.Helper()
	for {
		n, err := r.tap.Read(r.buf)
		if err != nil {
			r.t.Fatal(err)
		}
		if n > 0 {
			if err := h.Decode(r.buf[:10]); err != nil { // a tap leaves num_buffers to the device
				r.t.Fatal(err)
			}
			return h, r.buf[virtio.HdrSize:n], true
		}
		fds := []unix.PollFd{{Fd: int32(r.tap.FD), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 5000); n == 0 && err == nil {
			return h, nil, false
		}
	}
}

// expect reads one frame and wants it to be f, header included.
func (r *rig) expect(f *virtio.Frame) {
	r.t.Helper()
	h, frame, ok := r.read()
	want := f.Hdr
	if f.Len < 3500 && want.GSOType != virtio.GSONone {
		// The kernel keeps what fits a page in one piece, and gives the piece's length for hdr_len, which is a hint.
		want.HdrLen = uint16(f.Len)
	}
	switch {
	case !ok:
		r.t.Fatalf("no frame, want one of %d bytes", f.Len)
	case h != want:
		r.t.Fatalf("header %+v, want %+v", h, want)
	case !bytes.Equal(frame, bytes.Join(f.Frags, nil)):
		r.t.Fatalf("frame of %d bytes differs from the one of %d that was sent", len(frame), f.Len)
	}
}

// empty wants nothing more to be in the tap.
func (r *rig) empty() {
	r.t.Helper()
	n, err := r.tap.Read(r.buf)
	if n != 0 || err != nil {
		r.t.Fatalf("tap holds a frame of %d bytes more (%v)", n, err)
	}
}

// stream describes a superframe of TCP.
type stream struct {
	v6       bool
	flags    uint8
	segments int
	size     int // bytes of payload of each
	seq      uint32
}

// fill gives a stream's byte at sequence number seq. It repeats after 65536 bytes.
func fill(seq uint32) byte { return byte(seq*167 + seq>>8*13) }

// pattern is two periods of it.
var pattern = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<17)
	for i := range b {
		b[i] = fill(uint32(i))
	}
	return b
})

// headers builds Ethernet, IP and TCP (with 12 bytes of options) for n bytes of payload. The checksum is the pseudo header's.
func (s stream) headers(n int) []byte {
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}
	l4 := 32 + n
	var pseudo []byte
	if s.v6 {
		b[12], b[13] = 0x86, 0xdd
		b = append(b, 0x60, 0, 0, 0, byte(l4>>8), byte(l4), 6, 64)
		b = append(b, 0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
		b = append(b, 0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
		pseudo = b[14+8:]
	} else {
		ip := []byte{0x45, 0, byte((20 + l4) >> 8), byte(20 + l4), 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2}
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
		b = append(b, ip...)
		pseudo = ip[12:]
	}
	check := sum(pseudo, uint32(6+l4))
	tcp := []byte{0x05, 0xdc, 0x1f, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0x10 | s.flags, 0xff, 0xff, byte(check >> 8), byte(check), 0, 0,
		1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	return append(b, tcp...)
}

// sum is the Internet checksum's sum (RFC 1071) of b and start, folded.
func sum(b []byte, start uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// frame is the superframe, headers and each segment's payload in a fragment of its own, carved from where with 2 KiB chunks.
// Without memory to carve from, it is made.
func (s stream) frame(chunks []byte) *virtio.Frame {
	take := func(n int) []byte {
		if len(chunks) < 2048 {
			return make([]byte, n)
		}
		b := chunks[:n:n]
		chunks = chunks[2048:]
		return b
	}
	hdr := s.headers(s.segments * s.size)
	l4 := len(hdr) - 32
	f := &virtio.Frame{Hdr: virtio.NetHdr{
		Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: uint16(len(hdr)), GSOSize: uint16(s.size),
		CsumStart: uint16(l4), CsumOffset: 16,
	}}
	if s.v6 {
		f.Hdr.GSOType = virtio.GSOTCPv6
	}
	if s.flags&0x80 != 0 {
		f.Hdr.GSOType |= virtio.GSOECN
	}
	first := take(len(hdr))
	copy(first, hdr)
	f.Frags = append(f.Frags, first)
	seq := s.seq
	for range s.segments {
		b := take(s.size)
		for at := 0; at < s.size; {
			n := copy(b[at:], pattern()[seq&0xffff:])
			at, seq = at+n, seq+uint32(n)
		}
		f.Frags = append(f.Frags, b)
	}
	f.Len = len(hdr) + s.segments*s.size
	return f
}

// plain is a frame of one segment without claims.
func (s stream) plain() *virtio.Frame {
	s.segments = 1
	f := s.frame(nil)
	f.Hdr = virtio.NetHdr{}
	return f
}

// payload checks one TCP frame of the stream as the guest would and returns its payload. The frame is what a guest with features
// f may be given.
func (s stream) payload(h virtio.NetHdr, frame []byte, f virtio.Features) ([]byte, error) {
	h.NumBuffers = 1
	if err := virtio.CheckRx(&h, frame, f); err != nil {
		return nil, fmt.Errorf("header %+v: %w", h, err)
	}
	if h.Flags == 0 {
		// Nothing is claimed, so the guest will verify: the validator's full sum does the same.
		h.Flags = virtio.HdrDataValid
		if err := virtio.CheckRx(&h, frame, f|virtio.Mask(virtio.FGuestCsum)); err != nil {
			return nil, fmt.Errorf("checksum in a frame without flags: %w", err)
		}
	}
	n := len(s.headers(0))
	if len(frame) < n {
		return nil, fmt.Errorf("frame of %d bytes", len(frame))
	}
	return frame[n:], nil
}
