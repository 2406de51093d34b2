package stackguest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// rig is a pair whose tap is one end of a datagram socket pair, because that keeps frames apart as a tap does, and whose
// rings are served by the test. Everything shared lies on the Go heap, so the race detector sees it.
type rig struct {
	t     testing.TB
	p     *pair
	rxDev vring.Device
	txDev vring.Device
	stack int // the test's end of the "tap"
}

const rigGPA = 0x10_0000

func newRig(t testing.TB, f virtio.Features, num, size int) *rig {
	t.Helper()
	ringLen := (vring.Bytes(num) + 4095) &^ 4095
	mem := make([]byte, 2*ringLen+num*size+num*txStride+4096)
	table := guestmem.FromBytes(rigGPA, rigGPA, mem)
	ring := func(at int) (*vring.Driver, vring.Device) {
		l, err := vring.Split(mem[at:], num)
		must(t, err)
		drv, err := vring.NewDriver(l, f, vring.IndirectArea{})
		must(t, err)
		dev, err := vring.NewDevice(table, l, f, vring.Position{})
		must(t, err)
		return drv, dev
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	fds := ends[:]
	for _, fd := range fds {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<20))
	}
	r := &rig{t: t, p: &pair{tap: fds[0]}, stack: fds[1]}
	eventfd := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		must(t, err)
		fds = append(fds, fd)
		return fd
	}
	t.Cleanup(func() { closeAll(fds) })
	r.p.stop, r.p.rxCall, r.p.txCall = eventfd(), eventfd(), eventfd()
	r.p.c.shared = &shared{}
	at := 2 * ringLen
	r.p.rx = rxRing{mem: mem[at:][:num*size], gpa: rigGPA + uint64(at), size: size, feat: f, kick: eventfd()}
	at += num * size
	r.p.tx = txRing{mem: mem[at:][:num*txStride], gpa: rigGPA + uint64(at), hdrLen: f.HdrLen(), kick: eventfd()}
	r.p.rx.drv, r.rxDev = ring(0)
	r.p.tx.drv, r.txDev = ring(ringLen)
	must(t, r.p.rx.init(num))
	r.p.tx.init(num)
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deliver is a back-end that does it right: header and frame over as many buffers as needed, all published at once.
func (r *rig) deliver(h virtio.NetHdr, frame []byte) {
	r.t.Helper()
	h.NumBuffers = uint16((len(frame) + virtio.HdrSize + r.p.rx.size - 1) / r.p.rx.size)
	r.deliverAs(h, frame)
}

// deliverAs puts exactly this header in front.
func (r *rig) deliverAs(h virtio.NetHdr, frame []byte) {
	r.t.Helper()
	all := make([]byte, virtio.HdrSize, virtio.HdrSize+len(frame))
	h.Encode(all)
	all = append(all, frame...)
	for len(all) > 0 {
		all = all[r.push(all):]
	}
	r.rxDev.Publish()
}

// push fills the next buffer, without publishing it.
func (r *rig) push(b []byte) int {
	r.t.Helper()
	var c vring.Chain
	ok, err := r.rxDev.Next(&c)
	must(r.t, err)
	if !ok {
		r.t.Fatal("no receive buffer")
	}
	n := copy(c.Writable[0], b)
	r.rxDev.Push([]vring.Used{{Head: c.Head, Written: uint32(n)}})
	return n
}

// taken reads what the guest's stack was given: header and frame, nil if nothing.
func (r *rig) taken() []byte {
	r.t.Helper()
	b := make([]byte, 1<<17)
	n, err := unix.Read(r.stack, b)
	if err == unix.EAGAIN {
		return nil
	}
	must(r.t, err)
	return b[:n]
}

// udpFrame is a frame that needs nothing of its header: Ethernet, IPv4, UDP, payload.
func udpFrame(n int) []byte {
	b := make([]byte, max(n, 60))
	for i := range b {
		b[i] = byte(i * 7)
	}
	copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}) // local experimental ethertype
	return b
}

// superframe is an IPv4 TCP frame of segments of 1448 bytes with its header, as a back-end makes it.
func superframe(payload int) (virtio.NetHdr, []byte) {
	const mss = 1448
	b := make([]byte, 14+20+32+payload)
	copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00})
	ip, tcp := b[14:34], b[34:66]
	copy(ip, []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[2:], uint16(len(b)-14))
	binary.BigEndian.PutUint16(ip[10:], ^ones(ip))
	copy(tcp, []byte{0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10})
	pseudo := append(bytes.Clone(ip[12:20]), 0, 6, 0, 0)
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(b)-34))
	binary.BigEndian.PutUint16(tcp[16:], ones(pseudo))
	for i := range b[66:] {
		b[66+i] = byte(i >> 3)
	}
	return virtio.NetHdr{
		Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, HdrLen: 66, GSOSize: mss, CsumStart: 34, CsumOffset: 16,
	}, b
}

// ones is the folded ones-complement sum of an even number of bytes, by the book.
func ones(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
