package netdev

import (
	"errors"
	"fmt"
	"net"

	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ErrEmpty is returned by McastSocket.Recv when nothing waits.
var ErrEmpty = errors.New("nothing received")

// McastStats are counters since the socket was opened.
type McastStats struct {
	Frames      uint64 // returned by Recv
	Dropped     uint64 // lost by the kernel because we read too slowly
	Oversize    uint64 // left out: larger than the buffer, or GSO frames nobody segments here
	ForeignTag  uint64 // left out: an outer tag that is not 802.1Q
	BadChecksum uint64 // left out: a partial checksum that points outside the frame
}

// McastSocket receives the broadcast and multicast frames of one interface that XDP left to the host, and holds the
// receive filter entries of an attachment: all multicast, and the unicast addresses added. All of it ends with the
// socket, so also with the process. One goroutine calls Recv and Stats; the rest may be called from any.
type McastSocket struct {
	fd      int
	ifindex int
	rx      mcastMsg
	stats   McastStats
}

// mcastFilter accepts frames whose first byte has the group bit (IEEE 802.3, 3.2.3) and nothing else. A packet socket
// of type SOCK_RAW runs it with the Ethernet header in place. What a VM sent to its host comes in by the interface too, in spite of
// PACKET_IGNORE_OUTGOING: its neighbours have it already.
var mcastFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 0, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 1, SkipTrue: 3},
	bpf.LoadExtension{Num: bpf.ExtMark},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: meta.HostMark, SkipTrue: 1},
	bpf.RetConstant{Val: 0x40000},
	bpf.RetConstant{Val: 0},
}

// mcastBuffer bounds what waits for us, in bytes of kernel memory (skb truesize): about 250 frames of 1500 bytes.
const mcastBuffer = 1 << 20

// OpenMulticast opens the socket, in the calling thread's namespace, non-blocking. It needs CAP_NET_RAW.
func OpenMulticast(ifindex int) (*McastSocket, error) {
	// Protocol 0 receives nothing: no frame gets in before the filter is there and the socket is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("multicast socket: %w", err)
	}
	m := &McastSocket{fd: fd, ifindex: ifindex}
	if err := m.setup(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("multicast socket: interface %d: %w", ifindex, err)
	}
	return m, nil
}

// AdoptMulticast goes on with the socket of another process, its filter entries included. The counters begin anew. The descriptor is
// taken over, also with an error.
func AdoptMulticast(fd, ifindex int) (*McastSocket, error) {
	m := &McastSocket{fd: fd, ifindex: ifindex}
	sa, err := unix.Getsockname(fd)
	ll, ok := sa.(*unix.SockaddrLinklayer)
	switch {
	case err != nil:
	case !ok || ll.Ifindex != ifindex:
		err = errors.New("it is not bound to this interface")
	default:
		err = unix.SetNonblock(fd, true)
	}
	if err == nil {
		err = m.filter() // an older version's let a VM's own frames in
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("multicast socket: interface %d: %w", ifindex, err), unix.Close(fd))
	}
	m.rx.init()
	return m, nil
}

// filter puts mcastFilter in the place of what filter there is.
func (m *McastSocket) filter() error {
	prog, err := bpf.Assemble(mcastFilter)
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(prog))
	for i, p := range prog {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}
	if err := unix.SetsockoptSockFprog(m.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

func (m *McastSocket) setup() error {
	if err := m.filter(); err != nil {
		return err
	}
	for _, o := range []struct {
		name       string
		level, opt int
		val        int
	}{
		{"ignore outgoing", unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1}, // Linux 4.20
		{"auxiliary data", unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},          // the VLAN tag, which the kernel takes out
		{"virtio header", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},          // partial checksums (a veth peer's)
		{"receive buffer", unix.SOL_SOCKET, unix.SO_RCVBUF, mcastBuffer / 2}, // the kernel doubles it
	} {
		if err := unix.SetsockoptInt(m.fd, o.level, o.opt, o.val); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	addr := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: m.ifindex}
	if err := unix.Bind(m.fd, addr); err != nil {
		return fmt.Errorf("bind: %w", linkErrno(err))
	}
	// The groups that a VM joins are known to the VM alone (IPv6 solicited-node addresses), so the filter takes all.
	if err := m.membership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, nil); err != nil {
		return fmt.Errorf("all multicast: %w", err)
	}
	m.rx.init()
	return nil
}

// FD is the descriptor to poll for reading. It belongs to m.
func (m *McastSocket) FD() int { return m.fd }

// Recv takes one frame, Ethernet first, into buf and returns the part of buf it fills; ErrEmpty when none waits. The
// kernel has taken an outer 802.1Q tag out of the frame (wherever it was on the wire): it is returned as tci (host
// order) with tagged true; an inner tag is still in the frame. Partial checksums are completed. A frame that does not fit
// buf is counted and left out. An interface that is down or gone reads as ErrEmpty: Watcher tells of that. No allocation.
func (m *McastSocket) Recv(buf []byte) (frame []byte, tci uint16, tagged bool, err error) {
	for {
		n, err := m.rx.recv(m.fd, buf)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.ENETDOWN: // ENETDOWN is reported once when the interface goes down
			return nil, 0, false, ErrEmpty
		case unix.EINVAL: // a GSO type that the virtio header cannot say; that frame is gone
			m.stats.Oversize++
			continue
		default:
			return nil, 0, false, fmt.Errorf("multicast socket: receive: %w", err)
		}
		if n < vnetHdrLen {
			continue
		}
		if n-vnetHdrLen > len(buf) || m.rx.gso() {
			m.stats.Oversize++
			continue
		}
		frame := buf[:n-vnetHdrLen]
		tci, tagged, ok := m.rx.tag()
		if !ok {
			m.stats.ForeignTag++
			continue
		}
		if start, offset, partial := m.rx.partial(); partial && checksum.Complete(frame, start, offset) != nil {
			m.stats.BadChecksum++
			continue
		}
		m.stats.Frames++
		return frame, tci, tagged, nil
	}
}

// AddUnicast makes the interface accept frames to a MAC, beside its own (`bridge fdb show dev X` lists it). Where the
// device has no such filter the kernel makes it promiscuous by itself (net/core/dev.c, __dev_set_rx_mode).
func (m *McastSocket) AddUnicast(mac net.HardwareAddr) error {
	if err := m.membership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_UNICAST, mac); err != nil {
		return fmt.Errorf("receive filter: add %s: %w", mac, linkErrno(err))
	}
	return nil
}

// DelUnicast takes a MAC back. Every AddUnicast needs one.
func (m *McastSocket) DelUnicast(mac net.HardwareAddr) error {
	if err := m.membership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_UNICAST, mac); err != nil {
		return fmt.Errorf("receive filter: remove %s: %w", mac, linkErrno(err))
	}
	return nil
}

// SetPromiscuous switches promiscuous mode: the way out when AddUnicast fails (a filter that is full and a driver that
// does not fall back). Switching it on twice needs switching it off twice.
func (m *McastSocket) SetPromiscuous(on bool) error {
	op := unix.PACKET_DROP_MEMBERSHIP
	if on {
		op = unix.PACKET_ADD_MEMBERSHIP
	}
	if err := m.membership(op, unix.PACKET_MR_PROMISC, nil); err != nil {
		return fmt.Errorf("promiscuous mode: %w", linkErrno(err))
	}
	return nil
}

func (m *McastSocket) membership(op int, kind uint16, mac net.HardwareAddr) error {
	if len(mac) > 8 {
		return unix.EINVAL
	}
	req := unix.PacketMreq{Ifindex: int32(m.ifindex), Type: kind, Alen: uint16(len(mac))}
	copy(req.Address[:], mac)
	return unix.SetsockoptPacketMreq(m.fd, unix.SOL_PACKET, op, &req)
}

// Stats returns the counters.
func (m *McastSocket) Stats() McastStats {
	// Reading PACKET_STATISTICS sets the kernel's to 0.
	if s, err := unix.GetsockoptTpacketStats(m.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		m.stats.Dropped += uint64(s.Drops)
	}
	return m.stats
}

// Dropped is how many frames were lost because we read too slowly, and how many were left out because nobody here can use them.
func (m *McastSocket) Dropped() (slow, unusable uint64) {
	s := m.Stats()
	return s.Dropped, s.Oversize + s.ForeignTag + s.BadChecksum
}

// Close closes the socket; the filter entries go with it.
func (m *McastSocket) Close() error { return unix.Close(m.fd) }

func htons(v uint16) uint16 { return v<<8 | v>>8 }
