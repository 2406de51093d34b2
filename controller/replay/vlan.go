package replay

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/packet"
)

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

// untag removes the outer tag as an access port does, in place: the frame's offsets in info move with it, and what the parser said
// of a tag behind it stays said.
func untag(frame []byte, info *packet.Info) []byte {
	copy(frame[tagLen:], frame[:addrsLen])
	info.Tagged, info.TCI = false, 0
	for _, offset := range []*uint32{&info.L3, &info.L4, &info.Payload} {
		if *offset >= tagLen {
			*offset -= tagLen
		}
	}
	return frame[tagLen:]
}
