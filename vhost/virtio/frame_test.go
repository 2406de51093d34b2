package virtio

import "encoding/binary"

// testFrame describes a TCP or UDP frame; build makes its bytes with right lengths and checksums.
type testFrame struct {
	v6      bool
	tag     bool
	udp     bool
	flags   uint8 // TCP byte 13
	options int   // bytes of TCP options
	payload int
	pad     int  // bytes behind the IP packet
	whole   bool // full checksum instead of the pseudo-header's sum
}

func (s testFrame) l4() int {
	n := 34
	if s.v6 {
		n = 54
	}
	if s.tag {
		n += 4
	}
	return n
}

func (s testFrame) build() []byte {
	l4, l4len := s.l4(), 20+s.options+s.payload
	if s.udp {
		l4len = 8 + s.payload
	}
	b := make([]byte, l4+l4len+s.pad)
	for i := range b[l4:] {
		b[l4+i] = byte(i*7 + 1)
	}
	copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	at := 12
	if s.tag {
		binary.BigEndian.PutUint16(b[at:], 0x8100)
		binary.BigEndian.PutUint16(b[at+2:], 5)
		at += 4
	}
	proto := byte(6)
	if s.udp {
		proto = 17
	}
	var pseudo uint32
	ip := b[at+2:]
	if s.v6 {
		binary.BigEndian.PutUint16(b[at:], 0x86dd)
		ip[0], ip[6], ip[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(l4len))
		for i := range 32 {
			ip[8+i] = byte(i)
		}
		pseudo = sum(ip[8:40], 0)
	} else {
		binary.BigEndian.PutUint16(b[at:], 0x0800)
		copy(ip[:20], make([]byte, 20))
		ip[0], ip[8], ip[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+l4len))
		binary.BigEndian.PutUint16(ip[6:], 0x4000)
		copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:20], 0)))
		pseudo = sum(ip[12:20], 0)
	}
	pseudo += uint32(proto) + uint32(l4len)
	t, field := b[l4:], 16
	if s.udp {
		field = 6
		binary.BigEndian.PutUint16(t[4:], uint16(l4len))
	} else {
		t[12], t[13] = byte((20+s.options)/4)<<4, s.flags
	}
	binary.BigEndian.PutUint16(t[field:], fold(pseudo))
	if s.whole {
		binary.BigEndian.PutUint16(t[field:], 0)
		binary.BigEndian.PutUint16(t[field:], ^fold(sum(t[:l4len], pseudo)))
	}
	return b
}

// super is the header of a superframe of s with segments of size bytes.
func (s testFrame) super(size uint16) NetHdr {
	h := NetHdr{
		Flags: HdrNeedsCsum, GSOType: GSOTCPv4, GSOSize: size, HdrLen: uint16(s.l4() + 20 + s.options),
		CsumStart: uint16(s.l4()), CsumOffset: 16, NumBuffers: 1,
	}
	if s.v6 {
		h.GSOType = GSOTCPv6
	}
	if s.udp {
		h.GSOType, h.HdrLen, h.CsumOffset = GSOUDPL4, uint16(s.l4()+8), 6
	}
	return h
}
