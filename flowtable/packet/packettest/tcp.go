package packettest

import (
	"cmp"
	"encoding/binary"
)

// TCP flags. The upper ones stand in the low bits of byte 12 of the header.
const (
	FIN      = 0x001
	SYN      = 0x002
	RST      = 0x004
	PSH      = 0x008
	ACK      = 0x010
	URG      = 0x020
	ECE      = 0x040
	CWR      = 0x080
	NS       = 0x100 // AE in AccECN
	Reserved = 0x200 // the lowest of the three reserved bits
	NoFlags  = 0x8000
)

// ZeroWin is a window of 0; the zero value of TCP.Win means 65535.
const ZeroWin = -1

// TCP describes one TCP packet. The zero value is an IPv4 pure ACK from port 1500 to 8000 with DF, TTL 64, window 65535 and
// right checksums. Where a frame cannot be sound (say, with IPLenDelta), the checksums are right for the rest.
type TCP struct {
	V6   bool
	Tags []uint16 // TCI of each VLAN tag, outermost first
	TPID uint16   // of the outermost tag, 0: 0x8100

	DstMAC, SrcMAC   [6]byte
	Src4, Dst4       [4]byte
	Src6, Dst6       [16]byte
	SrcPort, DstPort uint16 // 0: 1500 and 8000

	TOS uint8 // or the traffic class: DSCP and ECN
	TTL uint8 // or the hop limit; 0: 64

	ID           uint16
	NoDF, MF     bool
	Reserved     bool
	FragOffset   uint16 // in units of 8 bytes
	IPOpts       []byte // of IPv4, multiple of 4
	FlowLabel    uint32 // of IPv6
	Ext          []Ext  // of IPv6
	IPLenDelta   int    // added to the IP length field: it lies
	Version      uint8  // in the first byte of IP instead of the right one, if not 0
	IHL          uint8  // instead of the right one, if not 0
	BadIP        bool   // IPv4 header checksum off by one bit
	ZeroIPLength bool   // the IP length field holds 0

	Seq, Ack uint32
	Flags    uint16 // 0: ACK; NoFlags: none
	Win      int    // 0: 65535; ZeroWin: 0
	Urgent   uint16
	Opts     []byte // TCP options, padded by Frame with end-of-options to a multiple of 4
	Doff     int8   // instead of the right data offset, if not 0; negative: 0

	Len     int    // bytes of payload, by Pattern
	Payload []byte // instead of Len

	BadTCP       bool // TCP checksum off by one bit
	Partial      bool // the TCP checksum is the pseudo header's sum
	Noncanonical bool // the TCP checksum is 0xffff where 0x0000 is right: needs 2 bytes of payload, which are changed for it

	Pad     bool   // with zeros to Ethernet's least length
	Trailer []byte // behind everything
}

// Pattern fills b with the bytes of a stream from sequence number seq on. It repeats after 65,521 bytes, which divides no
// usual length, and its bytes do not repeat at small distances.
func Pattern(b []byte, seq uint32) {
	for i := range b {
		x := (seq + uint32(i)) % 65521
		b[i] = byte(x*167 + x>>8*13 + 5)
	}
}

// DataLen is the length of the payload.
func (p TCP) DataLen() int {
	if p.Payload != nil {
		return len(p.Payload)
	}
	return p.Len
}

// Data is the payload.
func (p TCP) Data() []byte {
	if p.Payload != nil {
		return append([]byte(nil), p.Payload...)
	}
	b := make([]byte, p.Len)
	Pattern(b, p.Seq)
	return b
}

// Next is the packet that follows p in its stream: same headers, next sequence number, next IPv4 ID. It has as much payload.
func (p TCP) Next() TCP {
	p.Seq += uint32(p.DataLen())
	p.ID++
	return p
}

// Train is n packets, each the Next of the one before.
func (p TCP) Train(n int) []TCP {
	t := make([]TCP, n)
	for i := range t {
		t[i] = p
		p = p.Next()
	}
	return t
}

// With returns a changed copy, for use in the middle of a literal.
func (p TCP) With(change func(p *TCP)) TCP {
	change(&p)
	return p
}

// Frames builds each of a list of packets.
func Frames(packets ...TCP) [][]byte {
	f := make([][]byte, len(packets))
	for i := range packets {
		f[i] = packets[i].Frame()
	}
	return f
}

// Header is the TCP header with options and a checksum of 0.
func (p TCP) header() []byte {
	b := binary.BigEndian.AppendUint16(nil, cmp.Or(p.SrcPort, 1500))
	b = binary.BigEndian.AppendUint16(b, cmp.Or(p.DstPort, 8000))
	b = binary.BigEndian.AppendUint32(b, p.Seq)
	b = binary.BigEndian.AppendUint32(b, p.Ack)
	opts := append([]byte(nil), p.Opts...)
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	flags := p.Flags
	switch {
	case flags&NoFlags != 0:
		flags = 0
	case flags == 0:
		flags = ACK
	}
	doff := uint16(5 + len(opts)/4)
	if p.Doff > 0 {
		doff = uint16(p.Doff)
	} else if p.Doff < 0 {
		doff = 0
	}
	b = binary.BigEndian.AppendUint16(b, doff<<12|flags&0xfff)
	win := uint16(0xffff)
	if p.Win == ZeroWin {
		win = 0
	} else if p.Win != 0 {
		win = uint16(p.Win)
	}
	b = binary.BigEndian.AppendUint16(b, win)
	b = append(b, 0, 0, byte(p.Urgent>>8), byte(p.Urgent))
	return append(b, opts...)
}

// Frame builds the packet: Ethernet first, no FCS.
func (p TCP) Frame() []byte {
	tcp := p.header()
	hdr := len(tcp)
	tcp = append(tcp, p.Data()...)
	var ip []byte
	kind := uint16(0x0800)
	if p.V6 {
		ip, kind = ip6(&p, 6, len(tcp)), 0x86dd
	} else {
		ip = ip4(&p, 6, len(tcp))
	}
	l4 := len(ip)
	packet := append(ip, tcp...)
	p.checksums(packet, l4, hdr)
	b := append(ethernet(p.DstMAC, p.SrcMAC, p.TPID, p.Tags, kind), packet...)
	if p.Pad {
		b = pad(b, len(p.Tags))
	}
	return append(b, p.Trailer...)
}

// checksums writes the TCP checksum and all that is wrong by wish.
func (p TCP) checksums(packet []byte, l4, hdr int) {
	check := TCPCheck(packet, l4)
	if p.Noncanonical {
		// Adding the field itself to a word of payload brings the sum to 0xffff, whose complement is 0.
		w := packet[l4+hdr:]
		s := uint32(w[0])<<8 + uint32(w[1]) + uint32(check)
		s = s&0xffff + s>>16
		w[0], w[1] = byte(s>>8), byte(s)
		check = 0xffff
	}
	if p.Partial {
		check = PseudoSum(packet, l4)
	}
	if p.BadTCP {
		check ^= 0x0400
	}
	binary.BigEndian.PutUint16(packet[l4+16:], check)
	if p.V6 {
		if p.ZeroIPLength {
			packet[4], packet[5] = 0, 0
		}
		if p.Version != 0 {
			packet[0] = p.Version<<4 | packet[0]&15
		}
		return
	}
	if p.Version != 0 {
		packet[0] = p.Version<<4 | packet[0]&15
	}
	if p.IHL != 0 {
		packet[0] = packet[0]&0xf0 | p.IHL
	}
	if p.ZeroIPLength {
		packet[2], packet[3] = 0, 0
	}
	sum := HeaderCheck(packet[:l4])
	if p.BadIP {
		sum ^= 0x0400
	}
	binary.BigEndian.PutUint16(packet[10:], sum)
}
