// Package packet finds the headers of an Ethernet frame: one 802.1Q tag at most, IPv4 or IPv6, TCP. It yields offsets,
// copies nothing, and never reads outside the frame. What of it may be merged is not decided here.
//
// # Order of the checks
//
// The first check that fails decides the verdict. The BPF program (bpf/parse.h) makes the same checks in the same order,
// and a test runs the same frames through both.
//
//	frame        14 bytes                                   else Truncated
//	EtherType    0x8100: the tag (4 bytes) is there          else Truncated
//	             a second tag, or 0x88a8                     VLANStack
//	             0x0800 or 0x86dd                            else NotIP
//	IPv4         20 bytes                                    else Truncated
//	             version 4, IHL at least 5                   else Malformed
//	             IHL*4 <= total length <= bytes present      else Malformed
//	             protocol 6                                  else NotTCP
//	             MF and offset 0                             else Fragment
//	             IHL 5                                       else IPOptions
//	             reserved flag 0                             else ReservedFlag
//	IPv6         40 bytes                                    else Truncated
//	             version 6, payload length <= bytes present  else Malformed
//	             next header 6, or behind extension headers  else NotTCP; ExtHeader or Fragment
//	TCP          20 bytes, 20 <= data offset*4 <= TCP bytes  else Malformed
//	frame        ends with the IP packet, or is padded to    else Trailer
//	             60 bytes (64 with a tag)
//
// A frame whose addresses and TCP ports can be read is Keyed whatever its verdict, so that its flow can be closed before
// it passes. A TCP header that is cut or lies turns every other TCP verdict (Fragment apart) into Malformed.
package packet

import "encoding/binary"

// Verdict says what stands against merging a frame, by structure alone. The numbers are shared with bpf/abi.h.
type Verdict uint8

// The verdicts. OK is a TCP segment with nothing structural against it.
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

var verdictNames = [numVerdicts]string{
	"ok", "not_ip", "not_tcp", "vlan_stack", "malformed", "truncated", "trailer", "fragment", "ip_options", "ext_header", "reserved_flag",
}

// String returns the fixed name, as counters and replay print it.
func (v Verdict) String() string {
	if v < numVerdicts {
		return verdictNames[v]
	}
	return "invalid"
}

// Info is what Parse found. Offsets count bytes from the frame's first; 0 is an offset that was not reached.
type Info struct {
	L3         uint32 // IP header: 14, or 18 behind a tag
	L4         uint32 // TCP header
	Payload    uint32 // first byte behind the TCP header
	PayloadLen uint32 // TCP payload bytes, by the IP length
	TCI        uint16 // tag control information, host order, if Tagged
	Tagged     bool   // an 802.1Q tag is in the frame
	Family     uint8  // 4 or 6 by EtherType, otherwise 0
	TCPFlags   uint8  // byte 13 of the TCP header
	Keyed      bool   // addresses and TCP ports are readable
	Verdict    Verdict
}

// Sizes and numbers of the protocols.
const (
	EthernetLen = 14
	TagLen      = 4
	IPv4Len     = 20
	IPv6Len     = 40
	TCPLen      = 20
	MinFrame    = 60 // IEEE 802.3 without FCS: shorter frames are padded to it

	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	etherSVLAN = 0x88a8

	protoTCP       = 6
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
	maxExtHeaders  = 8
)

// Parse fills info from a frame, Ethernet first. It never panics and does not allocate.
func Parse(frame []byte, info *Info) {
	*info = Info{}
	info.Verdict = parse(frame, info)
}

func parse(frame []byte, info *Info) Verdict {
	if len(frame) < EthernetLen {
		return Truncated
	}
	l3 := EthernetLen
	typ := binary.BigEndian.Uint16(frame[12:])
	if typ == etherVLAN {
		if len(frame) < EthernetLen+TagLen {
			return Truncated
		}
		info.Tagged = true
		info.TCI = binary.BigEndian.Uint16(frame[14:])
		typ = binary.BigEndian.Uint16(frame[16:])
		l3 += TagLen
	}
	switch typ {
	case etherVLAN, etherSVLAN:
		return VLANStack
	case etherIPv4:
		info.L3, info.Family = uint32(l3), 4
		return parseIPv4(frame, l3, info)
	case etherIPv6:
		info.L3, info.Family = uint32(l3), 6
		return parseIPv6(frame, l3, info)
	}
	return NotIP
}

func parseIPv4(frame []byte, l3 int, info *Info) Verdict {
	ip := frame[l3:]
	if len(ip) < IPv4Len {
		return Truncated
	}
	ihl := int(ip[0]&0x0f) * 4
	if ip[0]>>4 != 4 || ihl < IPv4Len {
		return Malformed
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total < ihl || total > len(ip) {
		return Malformed
	}
	if ip[9] != protoTCP {
		return NotTCP
	}
	frag := binary.BigEndian.Uint16(ip[6:])
	switch {
	case frag&0x1fff != 0:
		return Fragment // no ports in a later fragment
	case frag&0x2000 != 0:
		info.reach(l3+ihl, total-ihl)
		return Fragment
	}
	v := OK
	if ihl > IPv4Len {
		v = IPOptions
	} else if frag&0x8000 != 0 {
		v = ReservedFlag
	}
	return parseTCP(frame, l3+ihl, l3+total, v, info)
}

func parseIPv6(frame []byte, l3 int, info *Info) Verdict {
	ip := frame[l3:]
	if len(ip) < IPv6Len {
		return Truncated
	}
	if ip[0]>>4 != 6 {
		return Malformed
	}
	payload := int(binary.BigEndian.Uint16(ip[4:]))
	if payload > len(ip)-IPv6Len {
		return Malformed
	}
	end := l3 + IPv6Len + payload
	next, at, v := ip[6], l3+IPv6Len, OK
	for range maxExtHeaders {
		if next == protoTCP {
			break
		}
		if next != extHopByHop && next != extRouting && next != extFragment && next != extDestination {
			return NotTCP
		}
		if end-at < 8 {
			return Malformed
		}
		size := 8
		if next == extFragment { // RFC 8200, 4.5: offset in the high 13 bits, M in the lowest
			switch word := binary.BigEndian.Uint16(frame[at+2:]); {
			case word&0xfff8 != 0:
				return Fragment
			case word&1 != 0:
				v = Fragment
			}
		} else {
			size = 8 + int(frame[at+1])*8
		}
		if v == OK {
			v = ExtHeader
		}
		if end-at < size {
			return Malformed
		}
		next = frame[at]
		at += size
	}
	if next != protoTCP {
		return NotTCP
	}
	if v == Fragment {
		info.reach(at, end-at)
		return Fragment
	}
	return parseTCP(frame, at, end, v, info)
}

// reach notes a TCP header at off with n bytes of the packet left: its ports make the frame keyed.
func (info *Info) reach(off, n int) {
	if n >= 4 {
		info.L4, info.Keyed = uint32(off), true
	}
}

// parseTCP checks the TCP header at off of a packet that ends at end. v is what the IP header brought.
func parseTCP(frame []byte, off, end int, v Verdict, info *Info) Verdict {
	info.reach(off, end-off)
	if end-off < TCPLen {
		return Malformed
	}
	header := int(frame[off+12]>>4) * 4
	if header < TCPLen || header > end-off {
		return Malformed
	}
	info.TCPFlags = frame[off+13]
	info.Payload = uint32(off + header)
	info.PayloadLen = uint32(end - off - header)
	if v != OK {
		return v
	}
	pad := MinFrame
	if info.Tagged {
		pad += TagLen
	}
	if len(frame) > end && len(frame) > pad {
		return Trailer
	}
	return OK
}
