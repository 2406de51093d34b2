package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// uplinkSndbuf is what one uplink socket may have in flight, in bytes as the kernel counts memory: it doubles the value. About 60
// frames of 64 KiB: enough for a fast device, and on a slow one, whose queueing discipline holds them, no more than vhost-net's
// default for a tap would be.
const uplinkSndbuf = 2 << 20

// Uplink is a packet socket with a virtio_net_hdr on an interface by which VMs reach the wire: what it sends is cut and summed by the
// interface, or by the kernel in front of it. It receives nothing and never blocks. All but Close and FD belong to one goroutine.
//
// By default frames go through the interface's queueing discipline, which cuts what the device does not take. Direct goes past it, as
// AF_XDP does; then what the device does not take is lost (net/core/dev.c, __dev_direct_xmit), so Send takes the other way from then on.
type Uplink struct {
	*Packet
	direct bool
	mark   uint32
	whole  bool // the interface takes UDP superframes
	udp    bool // one is among those that were added
	count  int  // frames that were added
	used   int  // their pieces
}

// OpenUplink opens a socket for the interface in the calling thread's network namespace. It needs CAP_NET_RAW and CAP_NET_ADMIN.
func OpenUplink(ifindex int) (*Uplink, error) {
	p, err := OpenPacket(ifindex)
	if err != nil {
		return nil, err
	}
	return newUplink(p)
}

// AdoptUplink goes on with the socket of another process. The descriptor is taken over, also with an error. Errors: those of AdoptPacket.
func AdoptUplink(fd, ifindex int) (*Uplink, error) {
	p, err := AdoptPacket(fd, ifindex)
	if err != nil {
		return nil, err
	}
	return newUplink(p)
}

func newUplink(p *Packet) (*Uplink, error) {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, uplinkSndbuf); err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket: send buffer: %w", os.NewSyscallError("setsockopt", err)), p.Close())
	}
	u := &Uplink{Packet: p}
	if err := u.Begin(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return u, nil
}

// Begin reads which way frames go, which a process before this one may have changed since AdoptUplink.
func (u *Uplink) Begin() error {
	bypass, err := unix.GetsockoptInt(u.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS)
	if err != nil {
		return fmt.Errorf("packet socket: %w", os.NewSyscallError("getsockopt", err))
	}
	u.direct = bypass != 0
	return u.setMark()
}

// SetMark gives frames that go through the queueing discipline a mark (SO_MARK), by which programs at TC know them. Those that go past it meet
// none, and have none: whoever gets them on this machine, a veth's other end, would see it.
func (u *Uplink) SetMark(mark uint32) error {
	u.mark = mark
	return u.setMark()
}

func (u *Uplink) setMark() error {
	if u.mark == 0 {
		return nil
	}
	if u.direct {
		return u.Packet.SetMark(0)
	}
	return u.Packet.SetMark(u.mark)
}

// Add puts a frame behind those that wait for Send; false: no more fit. Its memory, but not f and not the list of its fragments, is in
// use until Send. The frame and its header are the caller's to check, its fragments at most MaxFrameFrags.
func (u *Uplink) Add(f *virtio.Frame) bool {
	if u.count == MaxBatch || u.used+1+len(f.Frags) > batchIovs {
		return false
	}
	u.used = u.load(u.count, u.used, f)
	u.count++
	u.udp = u.udp || f.Hdr.GSOType == virtio.GSOUDPL4
	return true
}

// Send hands over all that was added, in its order, and returns how many frames. err says why the next one was not: ErrFull, ErrLost,
// ErrRefused (ErrMemory where a frame's is gone), ErrGone, ErrDown, ErrClosed. Afterwards nothing waits, and all memory is free again: the kernel has copied it.
func (u *Uplink) Send() (n int, err error) {
	count, cut := u.count, u.udp && !u.whole
	u.count, u.used, u.udp = 0, 0, false
	if u.fd < 0 {
		return 0, ErrClosed
	}
	if cut { // or the device would lose each
		if err := u.SetDirect(false); err != nil {
			return 0, err
		}
	}
	for n < count {
		sent, errno := sendmmsg(u.fd, u.msgs[n:count])
		n += sent
		switch errno {
		case 0, unix.EINTR:
		case unix.ENOBUFS:
			if !u.direct {
				return n, ErrLost
			}
			if err := u.SetDirect(false); err != nil { // the device does not take it, or is full: the discipline cuts, and queues
				return n, err
			}
		case unix.EFAULT: // the memory is gone
			return n, ErrMemory
		default:
			return n, sendError(errno)
		}
	}
	return n, nil
}

// Empty says whether all that was ever sent has left the kernel: the device is done with it.
func (u *Uplink) Empty() bool {
	n, err := unix.IoctlGetInt(u.fd, unix.SIOCOUTQ)
	return err == nil && n == 0
}

// Direct says whether frames go past the queueing discipline.
func (u *Uplink) Direct() bool { return u.direct }

// SetDatagrams says whether the interface takes UDP superframes whole, false until then. One that does not gets them by its queueing discipline.
func (u *Uplink) SetDatagrams(whole bool) { u.whole = whole }

// SetDirect chooses the way. To go past what is still in the queueing discipline would let frames overtake others: so it is set only
// when Empty, and otherwise stays as it is.
func (u *Uplink) SetDirect(on bool) error {
	if on == u.direct || on && !u.Empty() {
		return nil
	}
	v := 0
	if on {
		v = 1
	}
	if err := unix.SetsockoptInt(u.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, v); err != nil {
		return fmt.Errorf("packet socket: queueing discipline: %w", os.NewSyscallError("setsockopt", err))
	}
	u.direct = on
	return u.setMark()
}
