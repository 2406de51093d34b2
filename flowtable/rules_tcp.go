package flowtable

import (
	"bytes"
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// tcpRules are the rules for TCP that both profiles have.
type tcpRules struct{}

// alone is the part of admit that both profiles share. It tells why a segment with these flags and this state of its checksums leaves alone whatever its flow holds, or open.
// Flags come first: a SYN with a wrong checksum is a SYN to everybody who reads the counters.
func (*tcpRules) alone(flags uint8, sum Reason) Reason {
	switch {
	// Rows syn, rst, urg: each means something for one packet and its place in the stream.
	case flags&packet.SYN != 0:
		return ReasonSYN
	case flags&packet.RST != 0:
		return ReasonRST
	case flags&packet.URG != 0:
		return ReasonURG
	// Rows bad_ip_checksum, bad_tcp_checksum, partial_checksum: a superframe's header would say that the sums are right.
	case sum != ReasonNoncanonical:
		return sum // or open
	}
	return open
}

// verify checks both checksums of a segment. It returns open when they are right, ReasonNoncanonical when they are right but
// not what a segmentation would write, or else what is wrong. A sum of words that are not all 0 never folds to 0, so its
// complement is never 0xffff: a field of 0xffff is right, but nobody who computes it writes it.
//
// With late, where the Output is to sum up payloads, late is not 0 for a segment that is right if its payload is: the sum of the pseudo
// header and of its own header, which the payload's has to bring to 0xffff.
func (*tcpRules) verify(pt *port, p *Packet, mayBeLate bool) (why Reason, late uint16) {
	// The operator trusts what is in front of the NIC. admit calls nothing valid then.
	if pt.noVerify {
		return open, 0
	}
	// The header first: it is short, and the pseudo header's sum is worth nothing if the addresses are damaged.
	in := &p.Info
	pseudo, canonical, good := verifyIP(p, 6)
	if !good {
		return ReasonBadIPChecksum, 0
	}
	// Row left_checksum: nobody has had it in hand but the sender and us.
	if p.CsumStart != 0 {
		if !canonical {
			return ReasonNoncanonical, 0
		}
		return open, 0
	}
	// TCP's sum covers what belongs to the IP packet, without Ethernet's filler behind it (row padding).
	end := in.Payload + in.PayloadLen
	field := binary.BigEndian.Uint16(p.Data[in.L4+16:])
	partial := field == checksum.Fold(uint64(pseudo))
	// Row late_checksum: only of data that may be merged, and where the field does not say by itself that the rest matters at once.
	if mayBeLate && canonical && !partial && field != 0xffff && in.PayloadLen > 0 && len(p.Tail) == 0 && in.TCPFlags&lateFlags == packet.ACK {
		return open, checksum.Sum(p.Data[in.L4:in.Payload], pseudo)
	}
	// A frame in one piece, as nearly all are, is summed without a loop over fragments, which may begin at odd bytes.
	var sum uint16
	if len(p.Tail) == 0 {
		sum = checksum.Sum(p.Data[in.L4:end], pseudo)
	} else {
		sum = p.sum(pseudo)
	}
	if sum != 0xffff {
		// The pseudo header's sum alone: the sender left the rest to an offload that never ran, as a veth peer does.
		if partial {
			return ReasonPartialChecksum, 0
		}
		return ReasonBadTCPChecksum, 0
	}
	if !canonical || field == 0xffff {
		return ReasonNoncanonical, 0
	}
	return open, 0
}

// lateFlags: a segment with any of them but ACK leaves alone for a reason of its own, which a wrong sum goes before or behind.
const lateFlags = packet.SYN | packet.RST | packet.URG | packet.CWR | packet.ACK

// verifyIP checks the IP header's own sum of a packet of sound structure, without options or extension headers, and returns the sum of the pseudo
// header for what is behind it, of protocol proto. canonical: a segmentation would write the header's sum as it is.
func verifyIP(p *Packet, proto uint8) (pseudo uint32, canonical, good bool) {
	in := &p.Info
	l4len := in.Payload + in.PayloadLen - in.L4
	if in.Family != 4 {
		// IPv6 has no sum of its own; that of the transport covers the addresses (RFC 8200, 8.1).
		ip := p.Data[in.L3 : in.L3+40 : in.L3+40]
		return checksum.Pseudo6(ip[8:24], ip[24:40], proto, l4len), true, true
	}
	ip := p.Data[in.L3 : in.L3+20 : in.L3+20]
	if !headerGood(ip) {
		return 0, false, false
	}
	// Ones' complement has two zeroes, and both pass. Whoever cuts a superframe writes 0x0000.
	return checksum.Pseudo4(ip[12:16], ip[16:20], proto, l4len), ip[10]&ip[11] != 0xff, true
}

// headerGood checks the 20 bytes of an IPv4 header.
func headerGood(ip []byte) bool { return checksum.Fold(headerSum(ip)) == 0xffff }

// headerSum adds the words of an IPv4 header of 20 bytes; checksum.Fold makes their sum of it.
func headerSum(ip []byte) uint64 {
	be := binary.BigEndian
	return uint64(be.Uint32(ip)) + uint64(be.Uint32(ip[4:])) + uint64(be.Uint32(ip[8:])) + uint64(be.Uint32(ip[12:])) + uint64(be.Uint32(ip[16:]))
}

// empty tells what a segment without payload is to its flow. It is never held: an acknowledgement that waits delays its
// sender, and no superframe could give it back.
func (*tcpRules) empty(s *slot, p *Packet) Reason {
	in := &p.Info
	switch {
	// It ends the stream at a sequence number of its own, and no packet with data stands there.
	case in.TCPFlags&packet.FIN != 0:
		return ReasonFIN
	// No segment of an established connection: its acknowledgement and window mean nothing.
	case in.TCPFlags&packet.ACK == 0:
		return ReasonEmpty
	// Nothing is known of its flow, so it repeats nothing that we know of.
	case s == nil:
		return ReasonPureACK
	}
	tcp := p.Data[in.L4:in.Payload]
	// A keepalive has the number before the one that is due; a stale segment has an older one. Neither is ours to judge.
	if binary.BigEndian.Uint32(tcp[4:]) != s.nxt {
		return ReasonEmpty
	}
	// The same acknowledgement with the same window counts for fast retransmit. With another window it counts for nothing.
	switch d := int32(binary.BigEndian.Uint32(tcp[8:]) - s.w.ack()); {
	case d < 0:
		return ReasonEmpty
	case d > 0:
		return ReasonPureACK
	case binary.BigEndian.Uint16(tcp[14:]) == s.w.window():
		return ReasonDupACK
	}
	return ReasonWindowUpdate
}

// restDiffers compares the options that do not stand among the words (row options_change). Both lists are equally long, as the
// data offset is among the words and is compared first.
func (*tcpRules) restDiffers(o *origin, p *Packet) bool {
	from := p.Info.L4 + 20 + inlineOptions
	if p.Info.Payload <= from {
		return false
	}
	return !bytes.Equal(p.Data[from:p.Info.Payload], o.head[o.l4+20+inlineOptions:o.payload])
}

// follows tells why a segment does not begin where the superframe ends, or open. Nothing is reordered here: a segment ahead may be
// all there is of a lost one's train, and a segment behind may have other bytes than the first time (rows gap, retransmit). The
// difference wraps as TCP's numbers do (row sequence_wrap).
func (*tcpRules) follows(s *slot, p *Packet) Reason {
	switch d := int32(binary.BigEndian.Uint32(p.Data[p.Info.L4+4:]) - s.nxt); {
	case d > 0:
		return ReasonGap
	case d < 0:
		return ReasonRetransmit
	}
	return open
}

// start notes where the train goes on: the sequence number that is due, and what a later packet may bring. The engine has put the words into the slot.
func (*tcpRules) start(s *slot, p *Packet) {
	in := &p.Info
	s.nxt = binary.BigEndian.Uint32(p.Data[in.L4+4:]) + in.PayloadLen
	// Only the flags that may come with a later packet. All others are among the words.
	s.flags = in.TCPFlags & (packet.PSH | packet.FIN)
	s.gso = uint16(in.PayloadLen)
	// How the IDs of this train go on is for the second packet to show (row ip_id).
	s.id, s.idMode = 0, idUnknown
	if in.Family == 4 {
		s.id = binary.BigEndian.Uint16(p.Data[in.L3+4:])
	}
}

// write makes the first packet's headers those of the whole frame, in place: the first packet's memory is the frame's beginning.
//
// The TCP checksum becomes the sum of the pseudo header, and NEEDS_CSUM says so (virtio 1.2, 5.1.6.4.1). To sum up the payload again
// would cost a pass over it for nothing: every packet was verified, and whoever cuts the frame computes the sums anew.
func (*tcpRules) write(pt *port, sf *Superframe, s *slot, o *origin) {
	if s.segs == 1 {
		updateSingle(s, o)
		return
	}
	// Lengths, the smallest TTL (gro: equal ones), and the IPv4 sum.
	head := o.head
	ip, tcp := head[o.l3:o.l4], head[o.l4:o.payload]
	l4len := s.ipLen - uint32(o.l4-o.l3)
	if sf.GSOType = gsoTCPv4; s.meta&metaIPv6 != 0 {
		sf.GSOType = gsoTCPv6
		ip[7] = s.w.hop()
	} else if ip[8] != s.w.hop() { // mostly it is: see lengthen
		ip[8] = s.w.hop()
	}
	pseudo := s.lengthen(ip, 6, l4len)
	// The last acknowledgement and window (gro: equal ones). PSH and FIN came with a later packet.
	binary.BigEndian.PutUint32(tcp[8:], s.w.ack())
	tcp[13] |= s.flags
	binary.BigEndian.PutUint16(tcp[14:], s.w.window())
	binary.BigEndian.PutUint16(tcp[16:], checksum.Fold(uint64(pseudo)))
	// Row cwr: only rsc with GUEST_ECN merges it, and then the type has to say so (virtio 1.2, 5.1.6.4.1).
	if tcp[13]&packet.CWR != 0 {
		sf.GSOType |= gsoECN
	}
	// For our own Segmenter: a virtio header has no place for it.
	sf.FixedID = s.idMode == idFixed
	sf.CsumOffset = 16
	// Row rsc_info: the fields that say where the checksum is count segments and duplicate acknowledgements instead.
	if pt.rscInfo {
		sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum|hdrRSCInfo, s.segs, 0
	}
}

// lengthen makes an IP header that of the whole frame in s, with l4len bytes behind it, and returns the pseudo header's sum.
func (s *slot) lengthen(ip []byte, proto uint8, l4len uint32) (pseudo uint32) {
	if s.meta&metaIPv6 != 0 {
		// IPv6's length leaves out the fixed header (RFC 8200, 3), IPv4's has it in (RFC 791).
		binary.BigEndian.PutUint16(ip[4:], uint16(s.ipLen-40))
		return checksum.Pseudo6(ip[8:24], ip[24:40], proto, l4len)
	}
	// What is read whole before its parts are written needs not wait for them: of the old sum the length and the checksum are taken out.
	be := binary.BigEndian
	sum := headerSum(ip) + uint64(^be.Uint16(ip[2:])) + uint64(uint16(s.ipLen)) + uint64(^be.Uint16(ip[10:]))
	be.PutUint16(ip[2:], uint16(s.ipLen))
	be.PutUint16(ip[10:], ^checksum.Fold(sum))
	return checksum.Pseudo4(ip[12:16], ip[16:20], proto, l4len)
}

// updateSingle brings the window of absorbed updates, and the smallest TTL, into a packet that found no second one. It stays
// a plain packet, as a gso_size that its payload does not pass would fail the guest's check. Its checksums are corrected, not
// computed anew, so that damage done since they were verified stays visible (RFC 1624).
func updateSingle(s *slot, o *origin) {
	ip, tcp := o.head[o.l3:o.l4], o.head[o.l4:o.payload]
	check := binary.BigEndian.Uint16(tcp[16:])
	check = checksum.Update16(check, binary.BigEndian.Uint16(tcp[14:]), s.w.window())
	binary.BigEndian.PutUint16(tcp[16:], check)
	binary.BigEndian.PutUint16(tcp[14:], s.w.window())
	if s.meta&metaIPv6 != 0 {
		// No sum has the hop limit in it: it changes at every router.
		ip[7] = s.w.hop()
		return
	}
	// The TTL is half of a summed word; the protocol is the other half.
	from := binary.BigEndian.Uint16(ip[8:])
	ip[8] = s.w.hop()
	check = checksum.Update16(binary.BigEndian.Uint16(ip[10:]), from, binary.BigEndian.Uint16(ip[8:]))
	binary.BigEndian.PutUint16(ip[10:], check)
}
