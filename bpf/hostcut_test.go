package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const (
	cutLen  = 1000 // bytes of a datagram
	udpHead = 14 + 20 + 8
)

// cutCase is a train of datagrams that the host sends.
type cutCase struct {
	old    bool // by a kernel before 6.2
	to     net.IP
	port   int
	length int // bytes of all datagrams
	whole  bool
}

// A train of datagrams (UDP_SEGMENT) that a packet socket has no word for, or would take for what it is not, is cut by the kernel on its way
// to the VM; what a packet socket has a word for comes whole. No byte of either is lost, and none is on the wire.
func TestTrainsWithoutWordsAreCut(t *testing.T) {
	vm, group := net.IPv4(10, 77, 0, 50), net.IPv4(239, 1, 2, 3)
	for name, c := range map[string]cutCase{
		"QUIC":                    {to: vm, port: 443, length: 20 * cutLen, whole: true},
		"QUIC, old kernel":        {to: vm, port: 443, length: 20 * cutLen, old: true},
		"a shorter last datagram": {to: vm, port: 443, length: 20*cutLen + 7, old: true},
		"VXLAN":                   {to: vm, port: 4789, length: 20 * cutLen},
		"VXLAN as Linux has it":   {to: vm, port: 8472, length: 20 * cutLen},
		"GENEVE":                  {to: vm, port: 6081, length: 20 * cutLen},
		"MPLS":                    {to: vm, port: 6635, length: 20 * cutLen},
		"to a group":              {to: group, port: 443, length: 20 * cutLen, whole: true},
		"to a group, old kernel":  {to: group, port: 443, length: 20 * cutLen, old: true},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, attach func(*bpf.HostProgram) error) {
				r := (&hostRig{cuts: c.old}).begin(t, attach)
				c.whole = c.whole && r.way.TakesUSO
				trainsAreCut(t, r, &c)
			})
		})
	}
}

func trainsAreCut(t *testing.T, r *hostRig, c *cutCase) {
	t.Helper()
	wire := r.A.Capture(t)
	sent := make([]byte, c.length)
	for i := range sent {
		sent[i] = byte(i % 251)
	}
	r.B.SetOffload(t, "tx-checksumming", true) // without it a socket refuses to send a train
	neighbour(t, r.B, "10.77.0.50", vmMAC)
	r.sendTrain(t, c, sent)
	frames := r.read(func(f *tap.HostFrame) bool { return isUDPTo(f.Data, c.port) })
	var got []byte
	for i := range frames {
		f := &frames[i]
		switch {
		case c.whole && f.Hdr.GSOType != virtio.GSOUDPL4, !c.whole && f.Hdr.GSOType != virtio.GSONone, !c.whole && len(f.Data) > udpHead+cutLen:
			t.Errorf("a frame of %d bytes, type %d", len(f.Data), f.Hdr.GSOType)
		case !c.whole && !isSummed(f):
			t.Errorf("frame %d: its checksum is wrong", i)
		}
		got = append(got, f.Data[udpHead:]...)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came, in %d frames", len(got), len(sent), len(frames))
	}
	if c.to.IsMulticast() {
		return
	}
	for _, f := range wire.Drain(50 * time.Millisecond) {
		if isUDPTo(f.Data, c.port) {
			t.Fatalf("on the wire: %d bytes", len(f.Data))
		}
	}
}

// sendTrain sends bytes from the host as datagrams by one call.
func (r *hostRig) sendTrain(t *testing.T, c *cutCase, b []byte) {
	t.Helper()
	r.B.Do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, cutLen); err != nil {
			return err
		}
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(r.B.Index)}); err != nil {
			return err
		}
		return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: [4]byte(c.to.To4()), Port: c.port})
	})
}

func isUDPTo(frame []byte, port int) bool {
	return len(frame) > udpHead && frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP && int(binary.BigEndian.Uint16(frame[36:])) == port
}

// isSummed tells whether the checksum of a UDP frame is in it, and right.
func isSummed(f *tap.HostFrame) bool {
	udp := f.Data[34:]
	return f.Hdr.Flags&virtio.HdrNeedsCsum == 0 &&
		checksum.Sum(udp, checksum.Pseudo4(f.Data[26:30], f.Data[30:34], unix.IPPROTO_UDP, uint32(len(udp)))) == 0xffff
}

// The way waits for no reader and keeps no frame for one: whatever goes out by it has been seen.
func TestTheWayKeepsNoFrames(t *testing.T) {
	r := newHostRig(t, (*bpf.HostProgram).Attach)
	if out := r.B.Output(t, "ip", "-o", "link", "show", r.way.Name); !strings.Contains(out, "qdisc noqueue") || !strings.Contains(out, "qlen 1") {
		t.Error(out)
	}
}
