package virtio

import "encoding/binary"

// A parser of its own, on purpose simple: the validator must not share mistakes with the code that it judges.

const (
	ethLen = 14
	ip4Min = 20
	ip6Len = 40
	tcpMin = 20
	udpLen = 8

	maxDatagrams = 64 // of one frame, that Linux cuts (UDP_MAX_SEGMENTS until 6.9)

	protTCP = 6
	protUDP = 17

	tcpSYN = 0x02
	tcpRST = 0x04
	tcpURG = 0x20
	tcpCWR = 0x80
)

// layers is what the validator finds in a frame. The first error met stops the search.
type layers struct {
	family  int // 4, 6, 0 for neither
	l3, l4  int // offsets
	end     int // where the IP packet ends by its own length
	proto   uint8
	pseudo  uint32 // unfolded sum of the pseudo header
	l4whole bool   // l4 is the whole of an unfragmented datagram
}

// dissect finds the layers of a frame with at most one 802.1Q tag. ErrNotTCP means that there is no IP, or that
// something stands before the transport header which the validator does not follow; l then holds what was found.
func dissect(frame []byte) (l layers, err error) {
	if len(frame) < ethLen {
		return l, ErrFrameShort
	}
	l.l3 = ethLen
	etherType := binary.BigEndian.Uint16(frame[12:])
	if etherType == 0x8100 {
		if len(frame) < ethLen+4 {
			return l, ErrFrameShort
		}
		l.l3 += 4
		etherType = binary.BigEndian.Uint16(frame[16:])
	}
	switch etherType {
	case 0x0800:
		l.family = 4
		return l, l.dissect4(frame)
	case 0x86dd:
		l.family = 6
		return l, l.dissect6(frame)
	}
	return l, ErrNotTCP
}

func (l *layers) dissect4(frame []byte) error {
	ip := frame[l.l3:]
	if len(ip) < ip4Min {
		return ErrFrameShort
	}
	ihl := int(ip[0]&15) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || ihl < ip4Min || total < ihl || total > len(ip) {
		return ErrIPLength
	}
	if fold(sum(ip[:ihl], 0)) != 0xffff {
		return ErrIPChecksum
	}
	l.l4, l.end, l.proto = l.l3+ihl, l.l3+total, ip[9]
	l.l4whole = binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 // neither MF nor an offset
	l.pseudo = sum(ip[12:20], uint32(l.proto)+uint32(total-ihl))
	return nil
}

func (l *layers) dissect6(frame []byte) error {
	ip := frame[l.l3:]
	if len(ip) < ip6Len {
		return ErrFrameShort
	}
	payload := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip6Len+payload > len(ip) {
		return ErrIPLength
	}
	l.l4, l.end, l.proto = l.l3+ip6Len, l.l3+ip6Len+payload, ip[6]
	l.l4whole = true // or an extension header, which proto tells
	l.pseudo = sum(ip[8:40], uint32(l.proto)+uint32(payload))
	return nil
}

// sum adds b to an unfolded ones-complement sum as big-endian words (RFC 1071). b may have 64 KiB.
func sum(b []byte, acc uint32) uint32 {
	for len(b) >= 2 {
		acc += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}
