package packettest

import (
	"cmp"
	"encoding/binary"
)

// UDP describes a UDP datagram from port 1500 to 8000, with its checksum.
type UDP struct {
	V6               bool
	Tags             []uint16
	Src4, Dst4       [4]byte
	DstMAC, SrcMAC   [6]byte
	SrcPort, DstPort uint16
	IP               TCP    // of which what is IP's and not above counts: TOS, TTL, ID, flags, fragments, options, flow label, extension headers, lies
	Len              int    // bytes of payload, by Pattern from Seq
	Seq              uint32 //
	LenDelta         int    // added to the UDP length field: it lies
	BadUDP           bool   // UDP checksum off by one bit
	NoSum            bool   // the UDP checksum is 0: not used
	Partial          bool   // the UDP checksum is the pseudo header's sum
	Pad              bool
}

// Next is the datagram that follows u in its train: as long, with the next bytes and the next IPv4 ID.
func (u UDP) Next() UDP {
	u.Seq += uint32(u.Len)
	u.IP.ID++
	return u
}

// Train is n datagrams, each the Next of the one before.
func (u UDP) Train(n int) []UDP {
	t := make([]UDP, n)
	for i := range t {
		t[i] = u
		u = u.Next()
	}
	return t
}

// Frame builds the datagram.
func (u UDP) Frame() []byte {
	payload := make([]byte, u.Len)
	Pattern(payload, u.Seq)
	b := binary.BigEndian.AppendUint16(nil, cmp.Or(u.SrcPort, 1500))
	b = binary.BigEndian.AppendUint16(b, cmp.Or(u.DstPort, 8000))
	b = binary.BigEndian.AppendUint16(b, uint16(8+u.Len+u.LenDelta))
	b = append(append(b, 0, 0), payload...)
	h := u.IP
	h.V6, h.Tags, h.Src4, h.Dst4, h.DstMAC, h.SrcMAC = u.V6, u.Tags, u.Src4, u.Dst4, u.DstMAC, u.SrcMAC
	f := upper(&h, 17, b, 6, false)
	at := len(f) - len(b) + 6
	switch sum := f[at : at+2]; {
	case u.NoSum:
		sum[0], sum[1] = 0, 0
	case u.Partial:
		ip := f[14+4*len(u.Tags) : len(f)-len(b)]
		binary.BigEndian.PutUint16(sum, Sum(pseudo(ip, 17, len(b))))
	case u.BadUDP:
		sum[1] ^= 1
	}
	if h.BadIP && !u.V6 {
		f[14+4*len(u.Tags)+10] ^= 1
	}
	if u.Pad {
		f = pad(f, len(u.Tags))
	}
	return f
}
