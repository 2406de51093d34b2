package flowtable

import (
	"bytes"
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// tcpRules are the rules for TCP that both profiles have.
type tcpRules struct{}

// alone tells why a segment with these flags and this state of its checksums leaves alone whatever its flow holds, or open.
// Flags come first: a SYN with a wrong checksum is a SYN to everybody who reads the counters.
func (*tcpRules) alone(flags uint8, sum Reason) Reason {
	switch {
	case flags&packet.SYN != 0: // row syn: it has a meaning of its own, and so have the next two
		return ReasonSYN
	case flags&packet.RST != 0: // row rst
		return ReasonRST
	case flags&packet.URG != 0: // row urg
		return ReasonURG
	case sum != ReasonNoncanonical:
		return sum // rows bad_ip_checksum, bad_tcp_checksum, partial_checksum; or open
	}
	return open
}

// verify checks both checksums of a segment. It returns open when they are right, ReasonNoncanonical when they are right but
// not what a segmentation would write, or else what is wrong. A sum of words that are not all 0 never folds to 0, so its
// complement is never 0xffff: a field of 0xffff is right, but nobody who computes it writes it.
func (*tcpRules) verify(pt *port, p *Packet) Reason {
	if pt.noVerify {
		return open
	}
	in := &p.Info
	canonical := true
	var pseudo uint32
	l4len := in.Payload - in.L4 + in.PayloadLen
	if in.Family == 4 {
		ip := p.Data[in.L3 : in.L3+20 : in.L3+20]
		if !headerGood(ip) {
			return ReasonBadIPChecksum
		}
		canonical = ip[10]&ip[11] != 0xff
		pseudo = checksum.Pseudo4(ip[12:16], ip[16:20], 6, l4len)
	} else {
		ip := p.Data[in.L3 : in.L3+40 : in.L3+40]
		pseudo = checksum.Pseudo6(ip[8:24], ip[24:40], 6, l4len)
	}
	field := binary.BigEndian.Uint16(p.Data[in.L4+16:])
	if p.sum(pseudo) != 0xffff {
		if field == checksum.Sum(nil, pseudo) {
			return ReasonPartialChecksum // the sender left the rest to an offload that never ran
		}
		return ReasonBadTCPChecksum
	}
	if !canonical || field == 0xffff {
		return ReasonNoncanonical
	}
	return open
}

// headerGood checks the 20 bytes of an IPv4 header. Whether a sum is all ones does not depend on the order of bytes.
func headerGood(ip []byte) bool {
	s := uint64(binary.LittleEndian.Uint32(ip)) + uint64(binary.LittleEndian.Uint32(ip[4:])) +
		uint64(binary.LittleEndian.Uint32(ip[8:])) + uint64(binary.LittleEndian.Uint32(ip[12:])) +
		uint64(binary.LittleEndian.Uint32(ip[16:]))
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return s == 0xffff || s == 0x1fffe // 0x1fffe folds to 0xffff
}

// empty tells what a segment without payload is to its flow. It is never held: an acknowledgement that waits delays its
// sender, and no superframe could give it back.
func (*tcpRules) empty(s *slot, p *Packet) Reason {
	in := &p.Info
	switch {
	case in.TCPFlags&packet.FIN != 0:
		return ReasonFIN
	case in.TCPFlags&packet.ACK == 0:
		return ReasonEmpty
	case s == nil: // nothing is known of its flow, so nothing can be repeated
		return ReasonPureACK
	}
	tcp := p.Data[in.L4:in.Payload]
	if binary.BigEndian.Uint32(tcp[4:]) != s.nxt { // a keepalive, or stale: not ours to judge
		return ReasonEmpty
	}
	switch d := int32(binary.BigEndian.Uint32(tcp[8:]) - s.ack); {
	case d < 0:
		return ReasonEmpty
	case d > 0:
		return ReasonPureACK
	case binary.BigEndian.Uint16(tcp[14:]) == s.win:
		return ReasonDupACK
	}
	return ReasonWindowUpdate
}

// restDiffers compares the options that do not stand among the words. The lengths of both headers are equal: the data offset
// is among the words.
func (*tcpRules) restDiffers(o *origin, p *Packet) bool {
	from := p.Info.L4 + 20 + inlineOptions
	if p.Info.Payload <= from {
		return false
	}
	return !bytes.Equal(p.Data[from:p.Info.Payload], o.head[o.l4+20+inlineOptions:o.payload])
}

// follows tells why a segment does not begin where the superframe ends, or open. The difference wraps as TCP's numbers do.
func (*tcpRules) follows(s *slot, p *Packet) Reason {
	switch d := int32(binary.BigEndian.Uint32(p.Data[p.Info.L4+4:]) - s.nxt); {
	case d > 0:
		return ReasonGap
	case d < 0:
		return ReasonRetransmit
	}
	return open
}

// start notes what every later segment is compared with.
func (*tcpRules) start(s *slot, p *Packet, w *words) {
	in := &p.Info
	s.nxt = binary.BigEndian.Uint32(p.Data[in.L4+4:]) + in.PayloadLen
	s.ack, s.win = w.ack(), w.window()
	s.flags, s.hop = in.TCPFlags&(packet.PSH|packet.FIN), uint8(w[1]>>56)
	s.gso = uint16(in.PayloadLen)
	s.id, s.idMode = 0, idUnknown
	if in.Family == 4 {
		s.id = binary.BigEndian.Uint16(p.Data[in.L3+4:])
	}
}

// write implements ruleSet. The TCP checksum becomes the sum of the pseudo header, and NEEDS_CSUM says so (virtio 1.2,
// 5.1.6.4.1): the payload was verified packet by packet, and whoever cuts the frame computes the sums anew.
func (*tcpRules) write(pt *port, sf *Superframe, s *slot, o *origin) {
	if s.segs == 1 {
		updateSingle(s, o)
		return
	}
	head := o.head
	ip, tcp := head[o.l3:o.l4], head[o.l4:o.payload]
	l4len := s.ipLen - uint32(o.l4-o.l3)
	var pseudo uint32
	if s.meta&metaIPv6 != 0 {
		binary.BigEndian.PutUint16(ip[4:], uint16(s.ipLen-40))
		ip[7] = s.hop
		pseudo = checksum.Pseudo6(ip[8:24], ip[24:40], 6, l4len)
		sf.GSOType = gsoTCPv6
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(s.ipLen))
		ip[8] = s.hop
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip, 0))
		pseudo = checksum.Pseudo4(ip[12:16], ip[16:20], 6, l4len)
		sf.GSOType = gsoTCPv4
	}
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[13] |= s.flags
	binary.BigEndian.PutUint16(tcp[14:], s.win)
	binary.BigEndian.PutUint16(tcp[16:], checksum.Sum(nil, pseudo))
	if tcp[13]&packet.CWR != 0 {
		sf.GSOType |= gsoECN
	}
	sf.FixedID = s.idMode == idFixed
	sf.CsumOffset = 16
	if pt.rscInfo { // virtio 1.2, 5.1.6.4.1: the fields count segments and duplicate ACKs instead
		sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum|hdrRSCInfo, s.segs, 0
	}
}

// updateSingle brings the window of absorbed updates, and the smallest TTL, into a packet that found no second one. It stays
// a plain packet, as a gso_size that its payload does not pass would fail the guest's check. Its checksums are corrected, not
// computed anew, so that damage done since they were verified stays visible (RFC 1624).
func updateSingle(s *slot, o *origin) {
	ip, tcp := o.head[o.l3:o.l4], o.head[o.l4:o.payload]
	check := binary.BigEndian.Uint16(tcp[16:])
	check = checksum.Update16(check, binary.BigEndian.Uint16(tcp[14:]), s.win)
	binary.BigEndian.PutUint16(tcp[16:], check)
	binary.BigEndian.PutUint16(tcp[14:], s.win)
	if s.meta&metaIPv6 != 0 {
		ip[7] = s.hop
		return
	}
	from := binary.BigEndian.Uint16(ip[8:])
	ip[8] = s.hop
	check = checksum.Update16(binary.BigEndian.Uint16(ip[10:]), from, binary.BigEndian.Uint16(ip[8:]))
	binary.BigEndian.PutUint16(ip[10:], check)
}
