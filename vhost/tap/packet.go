package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

const (
	// MaxBatch is how many frames one system call hands over.
	MaxBatch = 64
	// MaxFrameFrags is the longest list of fragments that are not empty: the kernel takes 1024 pieces (UIO_MAXIOV), the
	// header is one.
	MaxFrameFrags = 1023

	batchIovs = 4096 // pieces of one batch; a batch is cut before the frame that does not fit
)

// sndbuf is what a packet socket may have in flight, in bytes. It bounds what a queueing discipline on the tap holds; a tap's
// own queue is not charged to the sender. It must not become INT_MAX, by which vhost-net knows a backend that takes its XDP
// batches (a tap): SO_SNDBUFFORCE doubles the value.
const sndbuf = 8 << 20

// Packet is a raw packet socket with a virtio_net_hdr, bound to a tap: what it sends, the VM receives. It receives nothing
// itself. It never blocks. Send and Refresh belong to one goroutine.
type Packet struct {
	fd      int
	ifindex int
	mtu     int

	// Filled by Send and read by the kernel. The pieces stay referenced until the next batch.
	hdrs [MaxBatch][virtio.HdrSize]byte
	msgs [MaxBatch]mmsghdr
	iov  [batchIovs]unix.Iovec
}

// OpenPacket opens a socket for the interface in the calling thread's network namespace, where it stays. It needs CAP_NET_RAW
// and CAP_NET_ADMIN. The interface's link may be down; that it is a tap is not checked. It is ErrGone if there is none.
func OpenPacket(ifindex int) (_ *Packet, err error) {
	// Protocol 0: nothing is received, so nothing fills a queue that nobody reads.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", os.NewSyscallError("socket", err))
	}
	return setUp(fd, ifindex)
}

// AdoptPacket goes on with the socket of another process, which must have been one for this interface. The descriptor is taken over,
// also with an error. Errors: those of OpenPacket, and ErrSocket.
func AdoptPacket(fd, ifindex int) (*Packet, error) {
	sa, err := unix.Getsockname(fd)
	if ll, ok := sa.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Ifindex != ifindex {
		return nil, errors.Join(fmt.Errorf("packet socket: interface %d: %w", ifindex, ErrSocket), unix.Close(fd))
	}
	return setUp(fd, ifindex)
}

// setUp makes a packet socket what a Packet needs. The descriptor is taken over.
func setUp(fd, ifindex int) (_ *Packet, err error) {
	p := &Packet{fd: fd, ifindex: ifindex}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return nil, fmt.Errorf("packet socket: virtio_net_hdr: %w", os.NewSyscallError("setsockopt", err))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sndbuf); err != nil {
		return nil, fmt.Errorf("packet socket: send buffer: %w", os.NewSyscallError("setsockopt", err))
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("packet socket: %w", os.NewSyscallError("fcntl", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}); err != nil {
		if err == unix.ENODEV {
			return nil, fmt.Errorf("packet socket: interface %d: %w", ifindex, ErrGone)
		}
		return nil, fmt.Errorf("packet socket: interface %d: %w", ifindex, os.NewSyscallError("bind", err))
	}
	if err := p.Refresh(); err != nil && !errors.Is(err, ErrDown) {
		return nil, err
	}
	return p, nil
}

// SetMark gives all frames that are sent from here on a mark (SO_MARK), by which programs of the kernel know them.
func (p *Packet) SetMark(mark uint32) error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("packet socket: mark: %w", os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// Refresh looks at the interface again: its MTU, which tells a frame that may be sent as it is from one that is too long, and whether
// it is there: ErrGone, or ErrDown while its link is down. Call it when the kernel has announced a change of the interface, and now
// and then where a Net is the feed: what goes to a tap that is gone is lost there without an error.
func (p *Packet) Refresh() error {
	mtu, up, err := interfaceState(p.fd, p.ifindex)
	switch {
	case err == unix.ENODEV:
		return fmt.Errorf("packet socket: interface %d: %w", p.ifindex, ErrGone)
	case err != nil:
		return fmt.Errorf("packet socket: interface %d: %w", p.ifindex, err)
	}
	p.mtu = mtu
	if !up {
		return fmt.Errorf("packet socket: interface %d: %w", p.ifindex, ErrDown)
	}
	return nil
}

// MTU is the interface's, in bytes behind Ethernet, as Refresh last found it.
func (p *Packet) MTU() int { return p.mtu }

// FD is the socket. It stays p's.
func (p *Packet) FD() int { return p.fd }

// Close closes the socket. What it sent is on its way or in the tap.
func (p *Packet) Close() error {
	if p.fd < 0 {
		return ErrClosed
	}
	err := unix.Close(p.fd)
	p.fd = -1
	return err
}

// Send sends frames in their order, MaxBatch of them with one system call, and returns how many it sent. err says why frame n
// was not: ErrFull (try again), ErrRefused (the frame is bad: go on behind it), ErrGone or ErrDown, ErrClosed. Without an
// error all were sent. The frames' memory is free again when Send returns. It allocates nothing.
func (p *Packet) Send(frames []*virtio.Frame) (n int, err error) {
	if p.fd < 0 {
		return 0, ErrClosed
	}
	for n < len(frames) {
		count, refused := p.gather(frames[n:])
		sent, errno := p.flush(count)
		n += sent
		switch {
		case errno != 0:
			return n, sendError(errno)
		case refused != nil:
			return n, refused
		}
	}
	return n, nil
}

// gather prepares the next batch and returns how many messages it has. err is why the frame behind them is not to be sent.
func (p *Packet) gather(frames []*virtio.Frame) (count int, err error) {
	used := 0
	for _, f := range frames {
		if count == MaxBatch {
			break
		}
		frags, err := check(f, p.mtu)
		switch {
		case err != nil:
			return count, err
		case frags > MaxFrameFrags:
			return count, ErrFragments
		case used+1+frags > batchIovs:
			return count, nil
		}
		used = p.load(count, used, f)
		count++
	}
	return count, nil
}

// load makes a frame the message at a place of the batch, with its pieces from used on, and returns where the next one's begin.
func (p *Packet) load(at, used int, f *virtio.Frame) int {
	f.Hdr.Encode(p.hdrs[at][:])
	start := used
	used++
	p.iov[start].Base = &p.hdrs[at][0]
	p.iov[start].SetLen(virtio.HdrSizeLegacy)
	for _, b := range f.Frags {
		if len(b) == 0 {
			continue
		}
		p.iov[used].Base = &b[0]
		p.iov[used].SetLen(len(b))
		used++
	}
	p.msgs[at].hdr.Iov = &p.iov[start]
	p.msgs[at].hdr.SetIovlen(used - start)
	return used
}

// flush sends the batch. A call that sent some says nothing of why it sent no more; the next one does.
func (p *Packet) flush(count int) (sent int, errno unix.Errno) {
	for sent < count {
		n, errno := sendmmsg(p.fd, p.msgs[sent:count])
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return sent, errno
		default:
			sent += n
		}
	}
	return sent, 0
}
