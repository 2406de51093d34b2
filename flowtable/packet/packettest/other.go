package packettest

import "encoding/binary"

// ICMP is an echo request of n bytes of payload: ICMP, or ICMPv6.
func ICMP(v6 bool, n int) []byte {
	b := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, make([]byte, n)...)
	Pattern(b[8:], 0)
	if v6 {
		b[0] = 128
		return upper(&TCP{V6: true}, 58, b, 2, true)
	}
	binary.BigEndian.PutUint16(b[2:], ^Sum(b))
	return upper(&TCP{}, 1, b, -1, true)
}

// ARP is a request, padded to Ethernet's least length.
func ARP() []byte {
	b := ethernet([6]byte{255, 255, 255, 255, 255, 255}, SrcMAC, 0, nil, 0x0806)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, SrcMAC[:]...), Src4[:]...)
	b = append(append(b, make([]byte, 6)...), Dst4[:]...)
	return pad(b, 0)
}

// Ethernet is a frame of any type with the given bytes behind the header.
func Ethernet(kind uint16, rest ...byte) []byte {
	return append(ethernet(DstMAC, SrcMAC, 0, nil, kind), rest...)
}

// upper puts IP and Ethernet before b, whose checksum field stands at field; -1: there is nothing to fill in.
func upper(h *TCP, proto uint8, b []byte, field int, padded bool) []byte {
	var ip []byte
	kind := uint16(0x0800)
	if h.V6 {
		ip, kind = ip6(h, proto, len(b)), 0x86dd
	} else {
		ip = ip4(h, proto, len(b))
	}
	if field >= 0 {
		check := ^Sum(pseudo(ip, proto, len(b)), b)
		if check == 0 && proto == 17 {
			check = 0xffff
		}
		binary.BigEndian.PutUint16(b[field:], check)
	}
	f := append(ethernet(h.DstMAC, h.SrcMAC, 0, h.Tags, kind), append(ip, b...)...)
	if padded {
		f = pad(f, len(h.Tags))
	}
	return f
}
