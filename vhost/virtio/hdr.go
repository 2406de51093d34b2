package virtio

import (
	"encoding/binary"
	"errors"
)

// Flags of [NetHdr] (section 5.1.6).
const (
	HdrNeedsCsum = 1 // the checksum at CsumStart+CsumOffset is partial; the rest of the frame was verified
	HdrDataValid = 2 // checksums were verified
	HdrRSCInfo   = 4 // CsumStart and CsumOffset hold the numbers of segments and of duplicate ACKs
)

// GSO types of [NetHdr].
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // obsolete UDP fragmentation
	GSOTCPv6 = 4
	GSOUDPL4 = 5
	GSOECN   = 0x80 // ORed to a TCP type when the frame carries CWR
)

// Sizes of the header in bytes.
const (
	HdrSize       = 12
	HdrSizeLegacy = 10 // without num_buffers
)

// ErrShortHeader: fewer bytes than a header has.
var ErrShortHeader = errors.New("virtio header: too short")

// NetHdr is struct virtio_net_hdr_v1 in host order. On the wire of a ring every field is little-endian.
// On receive with HdrRSCInfo set, CsumStart is the number of segments and CsumOffset that of duplicate ACKs.
type NetHdr struct {
	Flags, GSOType uint8
	HdrLen         uint16 // bytes of Ethernet, IP and TCP headers
	GSOSize        uint16 // payload bytes of one segment
	CsumStart      uint16 // where the checksum begins, from the frame's first byte
	CsumOffset     uint16 // where it is stored, from CsumStart
	NumBuffers     uint16 // receive: chains the frame spans; transmit: 0. Absent from the 10-byte header
}

// Encode writes the 12-byte form to the front of b, which must hold 12 bytes. The 10-byte form is its beginning.
func (h *NetHdr) Encode(b []byte) {
	_ = b[HdrSize-1]
	b[0] = h.Flags
	b[1] = h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOffset)
	binary.LittleEndian.PutUint16(b[10:], h.NumBuffers)
}

// Decode reads a header from the front of b. With 10 or 11 bytes it is the legacy form and NumBuffers becomes 0;
// with fewer the error is [ErrShortHeader] and h stays as it was.
func (h *NetHdr) Decode(b []byte) error {
	if len(b) < HdrSizeLegacy {
		return ErrShortHeader
	}
	h.Flags = b[0]
	h.GSOType = b[1]
	h.HdrLen = binary.LittleEndian.Uint16(b[2:])
	h.GSOSize = binary.LittleEndian.Uint16(b[4:])
	h.CsumStart = binary.LittleEndian.Uint16(b[6:])
	h.CsumOffset = binary.LittleEndian.Uint16(b[8:])
	h.NumBuffers = 0
	if len(b) >= HdrSize {
		h.NumBuffers = binary.LittleEndian.Uint16(b[10:])
	}
	return nil
}
