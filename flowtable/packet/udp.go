package packet

import "encoding/binary"

// ParseUDP is ParseHead for UDP: what Parse calls not_tcp and is UDP gets its offsets and one of the other verdicts, by the same checks
// in the same order, with these in the place of TCP's (RFC 768):
//
//	UDP  fewer than 8 bytes within the IP length             malformed
//	     length not what the IP length leaves                malformed
//
// A datagram is keyed when addresses and UDP ports could be read. What is neither is not_tcp.
func ParseUDP(head []byte, size int, info *Info) {
	parse(head, size, info, protoUDP)
	info.UDP = info.Family != 0 && info.Verdict != NotTCP
}

// parseUDP reads the UDP header at info.L4 of a packet that ends at end.
func parseUDP(head []byte, end uint32, info *Info) Verdict {
	n := end - info.L4
	if n < 4 {
		return Malformed
	}
	udp := head[min(info.L4, uint32(len(head))):]
	if len(udp) < 4 {
		return Truncated
	}
	info.Keyed = true
	if n < udpLen {
		return Malformed
	}
	if len(udp) < udpLen {
		return Truncated
	}
	if uint32(binary.BigEndian.Uint16(udp[4:])) != n { // of a fragment too, whose verdict is that already
		return Malformed
	}
	info.Payload = info.L4 + udpLen
	info.PayloadLen = n - udpLen
	return OK
}
