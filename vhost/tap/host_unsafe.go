package tap

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// hostMessages is one recvmmsg request, made once and used again: its pointers stay valid because it lives in the heap.
type hostMessages struct {
	msgs    [HostBatch]mmsghdr
	iov     [HostBatch][2]unix.Iovec
	hdr     [HostBatch][16]byte // virtio_net_hdr, 10 bytes
	control [HostBatch][64]byte // of struct cmsghdr, aligned
	data    []byte
}

func (m *hostMessages) init() {
	m.data = make([]byte, HostBatch*hostRoom)
	for i := range m.msgs {
		m.iov[i][0].Base = &m.hdr[i][0]
		m.iov[i][0].SetLen(virtio.HdrSizeLegacy)
		m.iov[i][1].Base = &m.data[i*hostRoom]
		m.iov[i][1].SetLen(hostRoom)
		h := &m.msgs[i].hdr
		h.Iov = &m.iov[i][0]
		h.SetIovlen(2)
		h.Control = &m.control[i][0]
	}
}

// recv reads up to HostBatch messages. What did not fit counts in their lengths all the same (MSG_TRUNC).
func (m *hostMessages) recv(fd int) (int, unix.Errno) {
	for i := range m.msgs {
		m.msgs[i].hdr.SetControllen(len(m.control[i]))
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m.msgs)), HostBatch, unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// frame describes a message that was read. false: nobody can use it.
func (m *hostMessages) frame(i int, f *HostFrame) bool {
	n := int(m.msgs[i].len) - virtio.HdrSizeLegacy
	if n <= 0 || n > hostRoom {
		return false
	}
	f.Data = m.data[i*hostRoom:][:n:n]
	f.Hdr = virtio.NetHdr{}
	_ = f.Hdr.Decode(m.hdr[i][:virtio.HdrSizeLegacy]) // which is long enough
	f.TCI, f.Tagged = 0, false
	aux := m.auxiliary(i)
	if aux == nil || aux.Status&unix.TP_STATUS_VLAN_VALID == 0 {
		return true
	}
	f.TCI, f.Tagged = aux.Vlan_tci, true
	return aux.Status&unix.TP_STATUS_VLAN_TPID_VALID == 0 || aux.Vlan_tpid == unix.ETH_P_8021Q
}

// auxiliary is struct tpacket_auxdata of a message, nil where the kernel gave none.
func (m *hostMessages) auxiliary(i int) *unix.TpacketAuxdata {
	b := m.control[i][:min(int(m.msgs[i].hdr.Controllen), len(m.control[i]))]
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			return nil
		}
		data := b[unix.CmsgLen(0):size]
		if h.Level == unix.SOL_PACKET && h.Type == unix.PACKET_AUXDATA && len(data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			return (*unix.TpacketAuxdata)(unsafe.Pointer(&data[0]))
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
	return nil
}
