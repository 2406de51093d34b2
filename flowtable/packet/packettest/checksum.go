package packettest

import "encoding/binary"

// Sum is the ones-complement sum of big-endian 16-bit words, folded, not complemented (RFC 1071). An odd last byte is the
// upper half of a word.
func Sum(parts ...[]byte) uint16 {
	var s uint64
	for _, b := range parts { // each part begins a word
		for i, c := range b {
			if i%2 == 0 {
				s += uint64(c) << 8
			} else {
				s += uint64(c)
			}
		}
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// pseudo is the pseudo header of an IP packet whose upper-layer part has n bytes (RFC 9293 section 3.1, RFC 8200 section
// 8.1). ip begins at the IP header.
func pseudo(ip []byte, proto uint8, n int) []byte {
	var b []byte
	if ip[0]>>4 == 6 {
		b = append(b, ip[8:40]...)
	} else {
		b = append(b, ip[12:20]...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, 0, 0, 0, proto)
}

// TCPCheck is what the TCP checksum field of an IP packet ought to hold, whatever it holds now. l4 is the offset of the TCP
// header in ip, which ends where the packet ends.
func TCPCheck(ip []byte, l4 int) uint16 {
	tcp := append([]byte(nil), ip[l4:]...)
	tcp[16], tcp[17] = 0, 0
	return ^Sum(pseudo(ip, 6, len(tcp)), tcp)
}

// PseudoSum is what the TCP checksum field holds when its completion is left to somebody else (NEEDS_CSUM).
func PseudoSum(ip []byte, l4 int) uint16 {
	return Sum(pseudo(ip, 6, len(ip)-l4))
}

// HeaderCheck is what an IPv4 header's checksum field ought to hold.
func HeaderCheck(header []byte) uint16 {
	h := append([]byte(nil), header...)
	h[10], h[11] = 0, 0
	return ^Sum(h)
}
