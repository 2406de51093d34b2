package packet

import (
	"encoding/binary"
	"math"
)

// Verdict is what the structure of a frame says about merging it. The numbers are shared with bpf/abi.h.
type Verdict uint8

// The verdicts. OK is TCP with nothing structural against merging; the others are explained in the package comment.
const (
	OK Verdict = iota
	NotIP
	NotTCP
	VLANStack
	Malformed
	Truncated
	Trailer
	Fragment
	IPOptions
	ExtHeader
	ReservedFlag
	numVerdicts
)

// NumVerdicts is the number of verdicts.
const NumVerdicts = int(numVerdicts)

var verdictNames = [...]string{
	"ok", "not_ip", "not_tcp", "vlan_stack", "malformed", "truncated", "trailer", "fragment", "ip_options", "ext_header",
	"reserved_flag",
}

// String returns the verdict's fixed name, which is also the name of the flow table's reason.
func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return "unknown"
}

// Flags in byte 13 of the TCP header.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

const (
	ethLen = 14
	tagLen = 4
	ip4Len = 20
	ip6Len = 40
	tcpLen = 20
	udpLen = 8

	minFrame = 60 // without FCS: up to here, bytes behind the IP packet are padding

	typeIPv4  = 0x0800
	typeIPv6  = 0x86dd
	typeVLAN  = 0x8100
	typeSVLAN = 0x88a8

	protoHopOpts  = 0
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoDstOpts  = 60

	maxExtHeaders = 8

	flagReserved = 0x8000
	flagMF       = 0x2000
	maskOffset   = 0x1fff
)

// Info is what Parse found. Offsets count from the frame's first byte.
type Info struct {
	L3         uint32  // IP header; 0 when not reached
	L4         uint32  // TCP header, or UDP's; 0 when not reached
	Payload    uint32  // of TCP or UDP; 0 when not reached
	PayloadLen uint32  // by the IP length, so without Ethernet padding
	TCI        uint16  // of the tag in the frame
	Tagged     bool    // there is one 802.1Q tag in the frame
	Family     uint8   // 4, 6, or 0
	TCPFlags   uint8   // byte 13 of the TCP header
	UDP        bool    // by ParseUDP: it is UDP, whatever else is wrong with it. A flow table finds that out itself
	Keyed      bool    // addresses and ports were read: older packets of that flow go first
	Verdict    Verdict // see the package comment
}

// Parse fills info from a frame. It never reads beyond the frame, never allocates, and leaves nothing of info as it was.
func Parse(frame []byte, info *Info) { ParseHead(frame, len(frame), info) }

// ParseHead is Parse for a frame of size bytes of which only the first are here. It says of the frame what Parse would say of
// all of it, as long as the headers are in head: what needs a header that is not is truncated.
func ParseHead(head []byte, size int, info *Info) { parse(head, size, info, protoTCP) }

// parse is ParseHead for the protocol proto; any other is NotTCP.
func parse(head []byte, size int, info *Info, proto uint8) {
	*info = Info{}
	if len(head) < ethLen {
		info.Verdict = Truncated
		return
	}
	l3 := uint32(ethLen)
	kind := binary.BigEndian.Uint16(head[12:])
	if kind == typeVLAN {
		if len(head) < ethLen+tagLen {
			info.L3, info.Verdict = l3, Truncated
			return
		}
		info.Tagged, info.TCI = true, binary.BigEndian.Uint16(head[14:])
		kind = binary.BigEndian.Uint16(head[16:])
		l3 += tagLen
	}
	info.L3 = l3
	n := uint32(min(max(size, len(head)), math.MaxInt32))
	var end uint32 // of the IP packet
	switch kind {
	case typeIPv4:
		info.Family = 4
		info.Verdict, end = parse4(head, n, info, proto)
	case typeIPv6:
		info.Family = 6
		info.Verdict, end = parse6(head, n, info, proto)
	case typeVLAN, typeSVLAN:
		info.Verdict = VLANStack
		return
	default:
		info.Verdict = NotIP
		return
	}
	if info.Verdict != OK {
		return
	}
	least := uint32(minFrame)
	if info.Tagged {
		least += tagLen
	}
	if n > end && n > least {
		info.Verdict = Trailer
	}
}

func parse4(head []byte, n uint32, info *Info, proto uint8) (Verdict, uint32) {
	ip := head[info.L3:]
	if len(ip) < ip4Len {
		return Truncated, 0
	}
	ihl := uint32(ip[0]&15) * 4
	total := uint32(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || ihl < ip4Len || total < ihl || total > n-info.L3 {
		return Malformed, 0
	}
	if ip[9] != proto {
		return NotTCP, 0
	}
	v := OK
	frag := binary.BigEndian.Uint16(ip[6:])
	switch {
	case frag&maskOffset != 0: // what follows is not a TCP header
		return Fragment, 0
	case frag&flagMF != 0:
		v = Fragment
	case ihl > ip4Len:
		v = IPOptions
	case frag&flagReserved != 0:
		v = ReservedFlag
	}
	info.L4 = info.L3 + ihl
	end := info.L3 + total
	if t := parseL4(head, end, info, proto); v == OK {
		v = t
	}
	return v, end
}

func parse6(head []byte, n uint32, info *Info, proto uint8) (Verdict, uint32) {
	ip := head[info.L3:]
	if len(ip) < ip6Len {
		return Truncated, 0
	}
	total := ip6Len + uint32(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || total > n-info.L3 {
		return Malformed, 0
	}
	end := info.L3 + total
	v := OK
	if ip[6] == proto {
		info.L4 = info.L3 + ip6Len
	} else if v = walkExt(head, end, info, ip[6], proto); info.L4 == 0 {
		return v, end
	}
	if t := parseL4(head, end, info, proto); v == OK {
		v = t
	}
	return v, end
}

// walkExt follows the extension headers of an IPv6 packet that ends at end, the first of them of type next, and sets info.L4
// when they end at proto. RFC 8200 section 4: each but the fragment header carries its length in units of 8 bytes without the
// first 8. Of more than maxExtHeaders nobody knows whether proto is behind them: they count as extension headers in front of it.
func walkExt(head []byte, end uint32, info *Info, next, proto uint8) Verdict {
	v := ExtHeader
	off := info.L3 + ip6Len
	for n := 0; isExt(next); n++ {
		if n == maxExtHeaders {
			return v
		}
		if off+8 > end {
			return NotTCP
		}
		if uint64(off)+8 > uint64(len(head)) {
			return Truncated
		}
		size := uint32(8)
		if next == protoFragment {
			frag := binary.BigEndian.Uint16(head[off+2:])
			if frag&0xfff8 != 0 {
				return Fragment
			}
			if frag&1 != 0 {
				v = Fragment
			}
		} else {
			size = (uint32(head[off+1]) + 1) * 8
		}
		next = head[off]
		off += size
	}
	if next != proto || off > end {
		return NotTCP
	}
	info.L4 = off
	return v
}

func isExt(next uint8) bool {
	return next == protoHopOpts || next == protoRouting || next == protoDstOpts || next == protoFragment
}

// parseL4 reads the header of proto at info.L4 of a packet that ends at end.
func parseL4(head []byte, end uint32, info *Info, proto uint8) Verdict {
	if proto == protoUDP {
		return parseUDP(head, end, info)
	}
	return parseTCP(head, end, info)
}

// parseTCP reads the TCP header at info.L4 of a packet that ends at end.
func parseTCP(head []byte, end uint32, info *Info) Verdict {
	n := end - info.L4
	if n < 4 {
		return Malformed
	}
	tcp := head[min(info.L4, uint32(len(head))):]
	if len(tcp) < 4 {
		return Truncated
	}
	info.Keyed = true
	if n < tcpLen {
		return Malformed
	}
	if len(tcp) < tcpLen {
		return Truncated
	}
	doff := uint32(tcp[12]>>4) * 4
	if doff < tcpLen || doff > n {
		return Malformed
	}
	if doff > uint32(len(tcp)) {
		return Truncated
	}
	info.TCPFlags = tcp[13]
	info.Payload = info.L4 + doff
	info.PayloadLen = n - doff
	return OK
}
