package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrFrame means that Read found no TCP packet it can describe.
var ErrFrame = errors.New("packettest: not a TCP packet")

// Read is the inverse of Frame: it describes a frame of TCP in IPv4 or IPv6 without options of IP, extension headers or
// fragments. Every field is written out: there are no zero values that stand for something else, but for a window of 0, no
// flags, and checksums, which are right unless BadIP, BadTCP or Partial is set. Padding up to 60 bytes is set as Pad, other
// bytes behind the packet as Trailer.
func Read(f []byte) (p TCP, err error) {
	if len(f) < 14 {
		return p, fmt.Errorf("%w: %d bytes", ErrFrame, len(f))
	}
	copy(p.DstMAC[:], f)
	copy(p.SrcMAC[:], f[6:])
	at := 12
	for len(f) >= at+6 && (f[at] == 0x81 && f[at+1] == 0 || f[at] == 0x88 && f[at+1] == 0xa8) {
		p.Tags = append(p.Tags, binary.BigEndian.Uint16(f[at+2:]))
		at += 4
	}
	kind := binary.BigEndian.Uint16(f[at:])
	ip := f[at+2:]
	var end, l4 int
	switch {
	case kind == 0x0800 && len(ip) >= 40 && ip[0] == 0x45 && ip[9] == 6:
		l4, end = 20, int(binary.BigEndian.Uint16(ip[2:]))
		p.TOS, p.ID, p.TTL = ip[1], binary.BigEndian.Uint16(ip[4:]), ip[8]
		frag := binary.BigEndian.Uint16(ip[6:])
		p.NoDF, p.MF, p.Reserved, p.FragOffset = frag&0x4000 == 0, frag&0x2000 != 0, frag&0x8000 != 0, frag&0x1fff
		p.BadIP = binary.BigEndian.Uint16(ip[10:]) != HeaderCheck(ip[:20])
		copy(p.Src4[:], ip[12:])
		copy(p.Dst4[:], ip[16:])
	case kind == 0x86dd && len(ip) >= 60 && ip[0]>>4 == 6 && ip[6] == 6:
		p.V6, l4, end = true, 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
		first := binary.BigEndian.Uint32(ip)
		p.TOS, p.FlowLabel, p.TTL = uint8(first>>20), first&0xfffff, ip[7]
		copy(p.Src6[:], ip[8:])
		copy(p.Dst6[:], ip[24:])
	default:
		return p, fmt.Errorf("%w: type %#04x", ErrFrame, kind)
	}
	if end > len(ip) || end < l4+20 {
		return p, fmt.Errorf("%w: IP length %d of %d", ErrFrame, end, len(ip))
	}
	rest := ip[end:]
	if len(rest) > 0 && len(f) == 60+4*len(p.Tags) {
		p.Pad = true
	} else if len(rest) > 0 {
		p.Trailer = append([]byte(nil), rest...)
	}
	return p, p.readTCP(ip[:end], l4)
}

func (p *TCP) readTCP(ip []byte, l4 int) error {
	tcp := ip[l4:]
	doff := int(tcp[12]>>4) * 4
	if doff < 20 || doff > len(tcp) {
		return fmt.Errorf("%w: data offset %d of %d", ErrFrame, doff, len(tcp))
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	p.Seq, p.Ack = binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	if p.Flags = binary.BigEndian.Uint16(tcp[12:]) & 0xfff; p.Flags == 0 {
		p.Flags = NoFlags
	}
	if p.Win = int(binary.BigEndian.Uint16(tcp[14:])); p.Win == 0 {
		p.Win = ZeroWin
	}
	p.Urgent = binary.BigEndian.Uint16(tcp[18:])
	p.Opts = append([]byte(nil), tcp[20:doff]...)
	p.Payload = append([]byte{}, tcp[doff:]...)
	switch check := binary.BigEndian.Uint16(tcp[16:]); check {
	case TCPCheck(ip, l4):
	case PseudoSum(ip, l4):
		p.Partial = true
	default:
		p.BadTCP = true
	}
	return nil
}
