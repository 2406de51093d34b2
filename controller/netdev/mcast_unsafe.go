package netdev

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vnetHdrLen is struct virtio_net_hdr, 10 bytes in host byte order on a packet socket (net/packet/af_packet.c).
const vnetHdrLen = 10

// mcastMsg is one recvmsg request, made once and used again: its pointers stay valid because it lives in the heap
// beside the socket, and the frame's buffer is set for the time of the call.
type mcastMsg struct {
	hdr     unix.Msghdr
	iov     [2]unix.Iovec
	vnet    [vnetHdrLen]byte
	_       [6]byte // keeps control aligned for struct cmsghdr
	control [64]byte
	aux     unix.TpacketAuxdata
	hasAux  bool
}

func (r *mcastMsg) init() {
	r.iov[0].Base = &r.vnet[0]
	r.iov[0].SetLen(vnetHdrLen)
	r.hdr.Iov = &r.iov[0]
	r.hdr.SetIovlen(len(r.iov))
	r.hdr.Control = &r.control[0]
}

// recv reads one message: virtio header, frame, VLAN tag. n counts the header and all of the frame (MSG_TRUNC), also
// what did not fit. The error is an Errno, not wrapped, so that an empty socket costs no allocation.
func (r *mcastMsg) recv(fd int, buf []byte) (n int, err error) {
	r.iov[1].Base = unsafe.SliceData(buf)
	r.iov[1].SetLen(len(buf))
	r.hdr.SetControllen(len(r.control))
	r.hdr.Flags = 0
	// Non-blocking by MSG_DONTWAIT as well, so a raw call (no hand-over to another thread) is right.
	got, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.hdr)), unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	r.iov[1].Base = nil
	switch errno {
	case 0:
	case unix.EAGAIN:
		return 0, unix.EAGAIN
	default:
		return 0, errno
	}
	r.parseControl()
	return int(got), nil
}

// parseControl finds struct tpacket_auxdata among the control messages.
func (r *mcastMsg) parseControl() {
	r.hasAux = false
	b := r.control[:min(int(r.hdr.Controllen), len(r.control))]
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			return
		}
		data := b[unix.CmsgLen(0):size]
		if h.Level == unix.SOL_PACKET && h.Type == unix.PACKET_AUXDATA && len(data) >= int(unsafe.Sizeof(r.aux)) {
			r.aux = *(*unix.TpacketAuxdata)(unsafe.Pointer(&data[0]))
			r.hasAux = true
			return
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
}
