package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// structural maps a parse's verdict to the reason of the same name.
var structural = [packet.NumVerdicts]Reason{
	packet.NotIP: ReasonNotIP, packet.NotTCP: ReasonNotTCP, packet.VLANStack: ReasonVLANStack,
	packet.Malformed: ReasonMalformed, packet.Truncated: ReasonTruncated, packet.Trailer: ReasonTrailer,
	packet.Fragment: ReasonFragment, packet.IPOptions: ReasonIPOptions, packet.ExtHeader: ReasonExtHeader,
	packet.ReservedFlag: ReasonReservedFlag,
}

// Add takes one packet in. It leaves at once, or becomes or joins a superframe, or (hold 0) waits for the end of the burst
// behind older ones. The package comment has the order of the checks.
func (t *Table) Add(p *Packet, now int64) {
	t.tick(now)
	if uint64(p.Port) >= uint64(len(t.ports)) {
		t.alone(nil, p, ReasonPortDown, false)
		return
	}
	pt := &t.ports[p.Port]
	pt.ledger.In++
	pt.ledger.InBytes += uint64(len(p.Data))
	if !sound(p.Data, &p.Info) {
		packet.Parse(p.Data, &p.Info)
	}
	in := &p.Info
	if in.Verdict != packet.OK || p.GSOInput {
		t.foreign(pt, p)
		return
	}
	if r := pt.shut(p.Data, in); r != open {
		t.alone(pt, p, r, false) // nothing of its flow is held
		return
	}
	if t.held >= t.maxHeld { // before the look-up: it may take this very flow
		t.relieve()
	}
	var k key
	readKey(p.Data, in, p.Port, &k)
	bucket, n := t.find(&k)
	if n != 0 && pt.hold != 0 && t.now > t.slots[n].born+pt.hold {
		t.shutSlot(pt, n, ReasonDeadline) // nobody called Expire in time
		n = 0
	}
	good, wrong := t.verify(p.Data, in)
	const single = packet.SYN | packet.RST | packet.URG
	switch {
	case in.TCPFlags&single != 0:
		r := ReasonURG
		if in.TCPFlags&packet.SYN != 0 {
			r = ReasonSYN
		} else if in.TCPFlags&packet.RST != 0 {
			r = ReasonRST
		}
		t.pass(pt, n, p, r, good && !t.noVerify)
	case !good:
		t.pass(pt, n, p, wrong, false)
	case wrong == ReasonNoncanonical && !pt.rsc:
		t.pass(pt, n, p, wrong, true)
	case in.PayloadLen == 0:
		t.empty(pt, n, p)
	default:
		t.data(pt, &k, bucket, n, p)
	}
}

// foreign passes a packet whose structure forbids merging, behind what is held of its flow if that can be told.
func (t *Table) foreign(pt *port, p *Packet) {
	in := &p.Info
	r := ReasonGSOInput
	if !p.GSOInput {
		r = ReasonMalformed
		if int(in.Verdict) < len(structural) {
			r = structural[in.Verdict]
		}
	}
	n := uint32(0)
	keyed := in.Keyed
	where := *in
	if !keyed && (in.Verdict == packet.Malformed || in.Verdict == packet.Truncated) {
		where, keyed = looseInfo(p.Data, in)
	}
	if keyed {
		var k key
		readKey(p.Data, &where, p.Port, &k)
		_, n = t.find(&k)
	}
	t.pass(pt, n, p, r, false)
}

// verify checks both checksums of a packet. why says what is wrong, or ReasonNoncanonical when they are right but not what
// a segmentation would write: a sum of words that are not all 0 never folds to 0, so its complement is never 0xffff.
func (t *Table) verify(data []byte, in *packet.Info) (good bool, why Reason) {
	if t.noVerify {
		return true, 0
	}
	canonical := true
	l4 := data[in.L4 : in.Payload+in.PayloadLen]
	var pseudo uint32
	if in.Family == 4 {
		ip := data[in.L3 : in.L3+20 : in.L3+20]
		if !headerGood(ip) {
			return false, ReasonBadIPChecksum
		}
		canonical = ip[10]&ip[11] != 0xff
		pseudo = checksum.Pseudo4(ip[12:16], ip[16:20], 6, uint32(len(l4)))
	} else {
		ip := data[in.L3 : in.L3+40 : in.L3+40]
		pseudo = checksum.Pseudo6(ip[8:24], ip[24:40], 6, uint32(len(l4)))
	}
	field := binary.BigEndian.Uint16(l4[16:])
	if checksum.Sum(l4, pseudo) != 0xffff {
		if field == checksum.Sum(nil, pseudo) {
			return false, ReasonPartialChecksum
		}
		return false, ReasonBadTCPChecksum
	}
	if !canonical || field == 0xffff {
		return true, ReasonNoncanonical
	}
	return true, 0
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

// pass closes the packet's flow, slot n or 0, and lets the packet leave alone behind it, both for the reason r.
func (t *Table) pass(pt *port, n uint32, p *Packet, r Reason, verified bool) {
	if n != 0 {
		t.shutSlot(pt, n, r)
	}
	t.alone(pt, p, r, verified)
}

// empty handles a TCP segment without payload: it is never held, and only an update of the window joins a superframe, in rsc.
func (t *Table) empty(pt *port, n uint32, p *Packet) {
	in := &p.Info
	if in.TCPFlags&packet.FIN != 0 {
		t.pass(pt, n, p, ReasonFIN, !t.noVerify)
		return
	}
	r := ReasonEmpty
	switch {
	case in.TCPFlags&packet.ACK == 0:
	case n == 0:
		r = ReasonPureACK // of a flow of which nothing is known
	default:
		s := &t.slots[n]
		tcp := p.Data[in.L4:in.Payload]
		ack := binary.BigEndian.Uint32(tcp[8:])
		if binary.BigEndian.Uint32(tcp[4:]) != s.nxt {
			break
		}
		if d := int32(ack - s.ack); d < 0 {
			break
		} else if d > 0 {
			r = ReasonPureACK
			break
		}
		if binary.BigEndian.Uint16(tcp[14:]) == s.win {
			r = ReasonDupACK
			break
		}
		r = ReasonWindowUpdate
		if t.absorb(pt, s, p) {
			return
		}
	}
	t.pass(pt, n, p, r, !t.noVerify)
}

// absorb lets a window update join a superframe of the rsc profile if all but the window is equal.
func (t *Table) absorb(pt *port, s *slot, p *Packet) bool {
	in := &p.Info
	if !pt.rsc || in.TCPFlags&packet.PSH != 0 {
		return false
	}
	var w words
	readWords(p.Data, in, &w)
	if w.differs(&s.w, pt.mask) || !timestampsOnly(p.Data[in.L4+20:in.Payload]) {
		return false
	}
	s.win = binary.BigEndian.Uint16(p.Data[in.L4+14:])
	s.hop = min(s.hop, uint8(w[1]>>56))
	s.updated = true
	t.blocks.add(s, nil, p.Ref)
	t.held++
	pt.ledger.Held++
	return true
}

// never tells why a data segment can be part of no superframe of the profile.
func (pt *port) never(p *Packet) (Reason, bool) {
	in := &p.Info
	switch {
	case in.TCPFlags&packet.CWR != 0 && !(pt.rsc && pt.ecn):
		return ReasonCWR, true // the header could not say which segment had it
	case in.TCPFlags&packet.ACK == 0:
		return ReasonNoACK, true
	case !pt.rsc:
		return 0, false
	case in.TCPFlags&packet.FIN != 0:
		return ReasonFIN, true
	case p.Data[in.L4+12]&15 != 0: // NS and reserved bits
		return ReasonTCPFlagsChange, true
	case !timestampsOnly(p.Data[in.L4+20 : in.Payload]):
		return ReasonOptionsChange, true
	}
	return 0, false
}

// data handles a segment with payload and right checksums.
func (t *Table) data(pt *port, k *key, bucket, n uint32, p *Packet) {
	if r, yes := pt.never(p); yes {
		t.pass(pt, n, p, r, !t.noVerify)
		return
	}
	in := &p.Info
	var w words
	readWords(p.Data, in, &w)
	if n != 0 {
		s := &t.slots[n]
		r := t.fits(pt, n, s, p, &w)
		if r == open {
			t.append(pt, n, s, p, &w)
			return
		}
		t.shutSlot(pt, n, r)
		if !pt.rsc && in.TCPFlags&(packet.PSH|packet.FIN) != 0 {
			t.alone(pt, p, r, !t.noVerify)
			return
		}
	} else if !pt.rsc && in.TCPFlags&(packet.PSH|packet.FIN) != 0 {
		r := ReasonPSH
		if in.TCPFlags&packet.PSH == 0 {
			r = ReasonFIN
		}
		t.alone(pt, p, r, !t.noVerify) // nothing could follow it
		return
	}
	t.start(pt, k, bucket, p, &w)
}

// fits tells why a segment cannot join a superframe, or open: first what must be equal, then sequence, IP ID, size.
func (t *Table) fits(pt *port, n uint32, s *slot, p *Packet, w *words) Reason {
	in := &p.Info
	if w.differs(&s.w, pt.mask) {
		return w.mismatchOf(&s.w, pt.mask, in.Family == 6)
	}
	options := in.Payload - in.L4 - 20
	if options > inlineOptions {
		from := &t.origins[n]
		head := from.head[from.l4:from.payload]
		if string(p.Data[in.L4+20+inlineOptions:in.Payload]) != string(head[20+inlineOptions:]) {
			return ReasonOptionsChange
		}
	}
	if pt.rsc && int32(uint32(w[3])-s.ack) < 0 {
		return ReasonACKChange
	}
	switch d := int32(binary.BigEndian.Uint32(p.Data[in.L4+4:]) - s.nxt); {
	case d > 0:
		return ReasonGap
	case d < 0:
		return ReasonRetransmit
	}
	if !pt.rsc && in.Family == 4 && !pt.followsID(s, binary.BigEndian.Uint16(p.Data[in.L3+4:]), w[2]&0x4000 != 0) {
		return ReasonIPID
	}
	if !pt.rsc && in.PayloadLen > uint32(s.gso) {
		return ReasonLarger
	}
	tagged := 0
	if in.Tagged {
		tagged = 1
	}
	if s.ipLen+in.PayloadLen > pt.maxIP[tagged] {
		return ReasonMaxBytes
	}
	return open
}

// followsID tells whether an IPv4 ID goes on as the train does: counting, or, for atomic datagrams (DF, RFC 6864), fixed.
func (pt *port) followsID(s *slot, id uint16, df bool) bool {
	switch id - s.id {
	case 1:
		return s.idMode != idFixed
	case 0:
		return s.idMode != idCounts && df && pt.fixedID
	}
	return false
}

// start opens a slot for a segment.
func (t *Table) start(pt *port, k *key, bucket uint32, p *Packet, w *words) {
	in := &p.Info
	n, s := t.take(pt, p.Port)
	s.addr, s.meta = k.addr, k.meta
	s.w = *w
	s.bucket = bucket
	s.hashNext, t.buckets[bucket] = t.buckets[bucket], n
	tcp := p.Data[in.L4 : in.L4+20 : in.L4+20]
	s.nxt = binary.BigEndian.Uint32(tcp[4:]) + in.PayloadLen
	s.ack, s.win = uint32(w[3]), uint16(w[3]>>32)
	s.ipLen = in.Payload + in.PayloadLen - in.L3
	s.segs, s.gso = 1, uint16(in.PayloadLen)
	s.id, s.idMode = 0, idUnknown
	if in.Family == 4 {
		s.id = binary.BigEndian.Uint16(p.Data[in.L3+4:])
	}
	s.state, s.flags, s.hop = slotOpen, in.TCPFlags&(packet.PSH|packet.FIN), uint8(w[1]>>56)
	s.verified, s.updated = !t.noVerify, false
	o := &t.origins[n] // field by field: a literal would be built elsewhere and copied
	o.rest, o.head, o.ref = k.rest, p.Data, p.Ref
	o.l3, o.l4, o.payload = uint8(in.L3), uint8(in.L4), uint8(in.Payload)
	o.plain, o.tcp = 0, true
	t.held++
	pt.ledger.Held++
	if pt.hold != 0 {
		t.due = min(t.due, s.born+pt.hold)
	}
	switch {
	case pt.rsc && pt.pshClose && s.flags&packet.PSH != 0:
		t.shutSlot(pt, n, ReasonPSH)
	case pt.maxSeg == 1:
		t.shutSlot(pt, n, ReasonMaxSegments)
	}
}

// append lets a segment that fits join, and closes the superframe when nothing can follow.
func (t *Table) append(pt *port, n uint32, s *slot, p *Packet, w *words) {
	in := &p.Info
	t.blocks.add(s, p.Data[in.Payload:in.Payload+in.PayloadLen:in.Payload+in.PayloadLen], p.Ref)
	t.held++
	pt.ledger.Held++
	size := uint16(in.PayloadLen)
	s.nxt += in.PayloadLen
	s.ipLen += in.PayloadLen
	s.segs++
	s.ack, s.win = uint32(w[3]), uint16(w[3]>>32)
	s.flags |= in.TCPFlags & (packet.PSH | packet.FIN)
	if in.Family == 4 && !pt.rsc {
		id := binary.BigEndian.Uint16(p.Data[in.L3+4:])
		s.idMode = idCounts
		if id == s.id {
			s.idMode = idFixed
		}
		s.id = id
	}
	if pt.rsc {
		s.gso = max(s.gso, size)
		s.hop = min(s.hop, uint8(w[1]>>56))
	}
	switch {
	case !pt.rsc && size < s.gso:
		t.shutSlot(pt, n, ReasonShort)
	case in.TCPFlags&packet.PSH != 0 && (!pt.rsc || pt.pshClose):
		t.shutSlot(pt, n, ReasonPSH)
	case in.TCPFlags&packet.FIN != 0:
		t.shutSlot(pt, n, ReasonFIN)
	case uint32(s.segs) >= pt.maxSeg:
		t.shutSlot(pt, n, ReasonMaxSegments)
	}
}
