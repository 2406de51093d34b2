package netdev

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// virtio_net_hdr of a packet socket: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const (
	vnetNeedsCsum = 1
	vnetGSONone   = 0
)

// tag returns the outer tag that the kernel took out of the frame. ok is false for a tag that is not 802.1Q: an
// 802.1ad tag with the number of one of our VLANs must not pass for it.
func (r *mcastMsg) tag() (tci uint16, tagged, ok bool) {
	if !r.hasAux || r.aux.Status&unix.TP_STATUS_VLAN_VALID == 0 {
		return 0, false, true
	}
	if r.aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 && r.aux.Vlan_tpid != unix.ETH_P_8021Q {
		return 0, false, false
	}
	return r.aux.Vlan_tci, true, true
}

func (r *mcastMsg) gso() bool { return r.vnet[1] != vnetGSONone }

// partial returns where a partial checksum starts summing and where, from there, it is stored.
func (r *mcastMsg) partial() (start, offset int, partial bool) {
	if r.vnet[0]&vnetNeedsCsum == 0 {
		return 0, 0, false
	}
	return int(binary.NativeEndian.Uint16(r.vnet[6:])), int(binary.NativeEndian.Uint16(r.vnet[8:])), true
}
