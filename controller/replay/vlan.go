package replay

import "encoding/binary"

const (
	addrsLen = 12 // both Ethernet addresses
	ethLen   = 14
	tagLen   = 4
	typeVLAN = 0x8100
)

// vlanOf is the VLAN id of a frame's outer 802.1Q tag, 0 where there is none or the frame ends in it.
func vlanOf(frame []byte) uint16 {
	if len(frame) < ethLen+tagLen || binary.BigEndian.Uint16(frame[addrsLen:]) != typeVLAN {
		return 0
	}
	return binary.BigEndian.Uint16(frame[ethLen:]) & 0xfff
}
