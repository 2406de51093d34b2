package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// Bounds of a HostReader.
const (
	HostBatch  = 16      // frames of one system call
	hostRoom   = 65550   // the longest frame that a virtio_net_hdr describes, and its Ethernet header
	hostRcvbuf = 8 << 20 // bytes as the kernel counts memory, which doubles them: some 200 frames of 64 KiB
)

// HostFrame is one frame of the host's, and what the kernel says of it. Its outer 802.1Q tag is beside it.
type HostFrame struct {
	Data   []byte // until the next Recv
	Hdr    virtio.NetHdr
	TCI    uint16
	Tagged bool
}

// HostReader reads what an interface's host sends to its VMs: a packet socket with a virtio_net_hdr on the device to which the programs of a
// bpf.HostProgram turn those frames. GSO frames come whole where a virtio_net_hdr has words for them; others are cut by the kernel on their way out
// of the device, so the socket hears what leaves as well: what it has sent itself is turned away before. It never blocks. All but Close and FD belong to one goroutine.
type HostReader struct {
	fd       int
	slow     uint64 // frames that the kernel lost because nobody read them in time
	unusable uint64
	rx       hostMessages
}

// OpenHostReader opens the socket for a device of the calling thread's network namespace. It needs CAP_NET_RAW and CAP_NET_ADMIN.
func OpenHostReader(ifindex int) (*HostReader, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("host's socket: %w", os.NewSyscallError("socket", err))
	}
	for _, o := range []struct {
		name       string
		level, opt int
		val        int
	}{
		{"auxiliary data", unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},
		{"virtio_net_hdr", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{"receive buffer", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, hostRcvbuf},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.val); err != nil {
			return nil, errors.Join(fmt.Errorf("host's socket: %s: %w", o.name, os.NewSyscallError("setsockopt", err)), unix.Close(fd))
		}
	}
	all := uint16(unix.ETH_P_ALL)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: ifindex}); err != nil {
		return nil, errors.Join(fmt.Errorf("host's socket: %w", os.NewSyscallError("bind", err)), unix.Close(fd))
	}
	return newHostReader(fd), nil
}

// AdoptHostReader goes on with the socket of another process, and what waits in it. The descriptor is taken over, also with an error.
func AdoptHostReader(fd, ifindex int) (*HostReader, error) {
	sa, err := unix.Getsockname(fd)
	if ll, ok := sa.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Ifindex != ifindex {
		return nil, errors.Join(fmt.Errorf("host's socket: interface %d: %w", ifindex, ErrSocket), unix.Close(fd))
	}
	// A version that turned all frames to the device's ingress had it so.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("host's socket: %w", os.NewSyscallError("setsockopt", err)), unix.Close(fd))
	}
	return newHostReader(fd), nil
}

func newHostReader(fd int) *HostReader {
	r := &HostReader{fd: fd}
	r.rx.init()
	return r
}

// FD is readable when frames wait. It stays r's.
func (r *HostReader) FD() int { return r.fd }

// Recv reads frames with one system call and returns how many; more says that others may wait. The kernel's words about a frame are not
// checked against it. A frame that is longer than any superframe, has a tag that is not 802.1Q, or is of a kind that the header has no word
// for, is left out and counted.
func (r *HostReader) Recv(out *[HostBatch]HostFrame) (n int, more bool) {
	got, errno := r.rx.recv(r.fd)
	if errno != 0 { // an unknown kind of GSO frame takes the frame with it; ENETDOWN is said once
		if errno == unix.EINVAL {
			r.unusable++
		}
		return 0, errno == unix.EINVAL || errno == unix.EINTR || errno == unix.ENETDOWN
	}
	for i := range got {
		if r.rx.frame(i, &out[n]) {
			n++
		} else {
			r.unusable++
		}
	}
	return n, got == HostBatch
}

// Dropped is how many frames were lost since the socket was opened here: by the kernel because they were not read in time, and because
// nobody here can use them.
func (r *HostReader) Dropped() (slow, unusable uint64) {
	if s, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil { // which sets the kernel's to 0
		r.slow += uint64(s.Drops)
	}
	return r.slow, r.unusable
}

// Close closes the socket.
func (r *HostReader) Close() error { return unix.Close(r.fd) }
