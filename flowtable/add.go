package flowtable

import (
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
		t.alone(nil, p, ReasonPortDown, false, 0)
		return
	}
	pt := &t.ports[p.Port]
	if t.follow(pt, p) {
		return
	}
	size := len(p.Data)
	if len(p.Tail) > 0 {
		size = p.size()
	}
	pt.ledger.In++
	pt.ledger.InBytes += uint64(size)
	if !sound(p.Data, size, &p.Info) {
		packet.ParseHead(p.Data, size, &p.Info)
	}
	in := &p.Info
	in.UDP = false // a caller who fills the rest from XDP's words may have left it from the packet before
	rules := pt.rules
	if in.Verdict == packet.NotTCP && pt.udp != nil { // XDP's parse and packet.Parse stop there
		packet.ParseUDP(p.Data, size, in)
		rules = pt.udp
	}
	if in.Verdict != packet.OK || p.GSOInput {
		t.foreign(pt, p)
		return
	}
	if r := pt.shut(p.Data, in); r != open {
		t.alone(pt, p, r, false, 0) // nothing of its flow is held
		return
	}
	// Before the look-up: what makes room may be this very flow.
	for t.held+1+len(p.Tail) > t.maxHeld && t.opened > 0 {
		t.relieve()
	}
	var k key
	readKey(p.Data, in, p.Port, &k)
	bucket, n := t.find(&k)
	if n != 0 && pt.hold != 0 && t.now > t.slots[n].born+pt.holdOf(&t.slots[n]) {
		t.shutSlot(pt, n, ReasonDeadline) // nobody called Expire in time
		n = 0
	}
	var s *slot
	if n != 0 {
		s = &t.slots[n]
	}
	j := rules.admit(pt, s, p, &t.w)
	switch {
	case j.late != 0 && !t.fitsLate(s, p, &j):
		t.pass(pt, n, p, ReasonBadTCPChecksum, false)
		return
	case j.do == leave:
		t.pass(pt, n, p, j.reason, j.verified)
		return
	case t.bulky(p):
		t.pass(pt, n, p, ReasonPressure, j.verified)
		return
	case j.do == absorb:
		t.absorb(pt, n, s, p)
		return
	}
	if s != nil {
		r := rules.fits(pt, s, &t.origins[n], p, &t.w)
		if r == open && s.ipLen+p.Info.PayloadLen > pt.longest(&p.Info) {
			r = ReasonMaxBytes // row max_bytes
		}
		if r == open && s.trust == late && len(p.Tail) > 0 {
			r = ReasonPressure // its fragments could not be told from packets
		}
		if r == open {
			p.complete()
			t.append(pt, n, s, p, rules, j.late)
			return
		}
		t.shutSlot(pt, n, r)
		j.reason = r
	}
	if j.do == joinOnly {
		t.alone(pt, p, j.reason, j.verified, j.late)
		return
	}
	p.complete()
	t.start(pt, &k, bucket, p, rules, trustIn(j.verified, j.late), j.late)
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
	switch {
	case keyed:
		var k key
		readKey(p.Data, &where, p.Port, &k)
		_, n = t.find(&k)
	case in.Verdict == packet.Fragment || in.Verdict == packet.ExtHeader:
		t.sealPair(pt, p, r)
	}
	t.pass(pt, n, p, r, false)
}

// pass closes the packet's flow, slot n or 0, and lets the packet leave alone behind it, both for the reason r.
func (t *Table) pass(pt *port, n uint32, p *Packet, r Reason, verified bool) {
	if n != 0 {
		t.shutSlot(pt, n, r)
	}
	t.alone(pt, p, r, verified, 0)
}

// start opens a slot for a packet.
func (t *Table) start(pt *port, k *key, bucket uint32, p *Packet, rules ruleSet, tr trust, sum uint16) {
	in := &p.Info
	n, s := t.take(pt, p.Port)
	s.addr, s.meta = k.addr, k.meta
	s.w = t.w
	t.slots[t.last].then, t.last = n, n
	s.hashNext, t.buckets[bucket] = t.buckets[bucket], n
	if t.pairs.kept {
		t.listPair(n, k)
	}
	s.ipLen = in.Payload + in.PayloadLen - in.L3
	s.segs = 1
	s.state, s.trust = slotOpen, tr
	o := &t.origins[n] // field by field: a literal would be built elsewhere and copied
	o.rest, o.head, o.ref = k.rest, p.Data, lateRef(p.Ref, sum)
	o.l3, o.l4, o.payload = uint8(in.L3), uint8(in.L4), uint8(in.Payload)
	o.plain, o.tcp, o.updates = 0, !in.UDP, 0
	t.hold(pt, n, s, p.Tail)
	s.level = 0
	if pt.adaptive {
		t.chooseHold(pt, n, s, k, bucket, in.PayloadLen)
	}
	if pt.hold != 0 {
		t.due = min(t.due, s.born+pt.holdOf(s))
	}
	r := rules.start(pt, s, p, &t.w)
	if r == open && pt.maxSeg == 1 {
		r = ReasonMaxSegments
	}
	if r != open {
		t.shutSlot(pt, n, r)
	}
}

// hold counts a packet that a slot has taken as its first, and keeps what it has behind its first fragment: untrimmed, as it
// may still leave alone.
func (t *Table) hold(pt *port, n uint32, s *slot, tail []Fragment) {
	t.held++
	pt.ledger.Held++
	if len(tail) == 0 {
		t.origins[n].tail = 0
		return
	}
	filled := uint8(0)
	for i := range tail {
		f := tail[i]
		if len(f.Data) > 0 {
			filled++
		} else {
			f.Data = nil
		}
		t.blocks.add(s, f.Data, f.Ref)
		t.held++
	}
	t.origins[n].tail = filled
}

// bulky tells whether a packet is in more pieces than a slot or the table may hold.
func (t *Table) bulky(p *Packet) bool {
	return len(p.Tail) > MaxTail || len(p.Tail) >= t.maxHeld
}

// append lets a packet that fits join, and closes the superframe when nothing can follow. The capacity of its payload's slice ends
// with the frame, padding included.
func (t *Table) append(pt *port, n uint32, s *slot, p *Packet, rules ruleSet, sum uint16) {
	in := &p.Info
	end := in.Payload + in.PayloadLen
	if len(p.Tail) == 0 {
		t.blocks.add(s, p.Data[in.Payload:end:len(p.Data)], lateRef(p.Ref, sum))
		t.held++
	} else {
		t.appendTail(s, p)
	}
	pt.ledger.Held++
	s.ipLen += in.PayloadLen
	s.segs++
	pt.came(s, t.now)
	r := rules.grow(pt, s, p, &t.w)
	if r == open && uint32(s.segs) >= pt.maxSeg {
		r = ReasonMaxSegments
	}
	if r != open {
		t.shutSlot(pt, n, r)
	}
}

// appendTail adds a packet of several fragments to a slot, without what stands behind its payload.
func (t *Table) appendTail(s *slot, p *Packet) {
	left := p.Info.PayloadLen
	piece := func(b []byte, ref uint64) {
		n := min(uint32(len(b)), left)
		left -= n
		if n == 0 {
			b = nil
		}
		t.blocks.add(s, b[:n:n], ref)
		t.held++
	}
	piece(p.Data[p.Info.Payload:], p.Ref)
	for i := range p.Tail {
		piece(p.Tail[i].Data, p.Tail[i].Ref)
	}
}

// absorb lets a packet without payload vanish in a superframe. Only its memory is kept until the superframe leaves.
func (t *Table) absorb(pt *port, n uint32, s *slot, p *Packet) {
	o := &t.origins[n]
	if o.updates == maxUpdates {
		t.pass(pt, n, p, ReasonWindowUpdate, s.trust == verified)
		return
	}
	o.updates++
	t.blocks.add(s, nil, p.Ref)
	t.held++
	for i := range p.Tail { // padding
		t.blocks.add(s, nil, p.Tail[i].Ref)
		t.held++
	}
	pt.ledger.Held++
	if r := pt.rules.grow(pt, s, p, &t.w); r != open {
		t.shutSlot(pt, n, r)
	}
}
