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

// complete finishes a partial checksum in place (RFC 1071; the field holds the pseudo-header's sum). False when it
// points outside the frame.
func complete(frame []byte, start, offset int) bool {
	const udpOffset = 6 // a UDP sum of 0 means "none" and is sent as its other zero (RFC 768)
	if start+offset+2 > len(frame) {
		return false
	}
	var sum uint64
	b := frame[start:]
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	check := ^uint16(sum)
	if check == 0 && offset == udpOffset {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(frame[start+offset:], check)
	return true
}
