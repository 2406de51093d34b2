package netnstest

import (
	"encoding/binary"
	"net"
)

// Ethernet puts an Ethernet header before a payload and pads the frame to 60 bytes, as a NIC does.
func Ethernet(dst, src net.HardwareAddr, etherType uint16, payload []byte) []byte {
	f := make([]byte, 14, max(60, 14+len(payload)))
	copy(f, dst)
	copy(f[6:], src)
	binary.BigEndian.PutUint16(f[12:], etherType)
	f = append(f, payload...)
	for len(f) < 60 {
		f = append(f, 0)
	}
	return f
}

// Tag inserts an 802.1Q tag into a copy of a frame.
func Tag(frame []byte, tci uint16) []byte {
	f := make([]byte, 0, len(frame)+4)
	f = append(f, frame[:12]...)
	f = append(f, 0x81, 0x00, byte(tci>>8), byte(tci))
	return append(f, frame[12:]...)
}
