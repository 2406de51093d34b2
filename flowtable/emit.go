package flowtable

import (
	"encoding/binary"
	"slices"
)

// alone lets a packet leave by itself, as it came. With hold 0 it waits in a slot if something older of its port is held.
// pt is nil for a packet of no known port, which is in no account. sum is what admit calls late.
func (t *Table) alone(pt *port, p *Packet, r Reason, good bool, sum uint16) {
	segments := 1
	tcp := p.Info.Payload != 0 && !p.Info.UDP
	if tcp && p.Info.PayloadLen == 0 {
		segments = 0
	}
	if pt != nil && pt.hold == 0 && pt.oldest != 0 {
		for pt.oldest != 0 && (t.held+1+len(p.Tail) > t.maxHeld || t.free == 0 || t.bulky(p)) {
			t.relieve()
		}
		if pt.oldest != 0 {
			p.complete()
			n, s := t.take(pt, p.Port)
			s.state, s.reason, s.trust = slotWaiting, r, trustIn(good, sum)
			s.meta = uint64(p.Port) << metaPort
			t.origins[n] = origin{head: p.Data, ref: lateRef(p.Ref, sum), plain: uint8(1 + segments), tcp: tcp,
				l3: uint8(p.Info.L3), l4: uint8(p.Info.L4), payload: uint8(p.Info.Payload)}
			t.hold(pt, n, s, p.Tail)
			return
		}
	}
	if pt == nil || !pt.csum {
		p.complete()
	}
	sf := t.single(p.Port, r, p.Data, p.Ref)
	sf.Segments, sf.TCP = segments, tcp
	if len(p.Tail) > 0 {
		t.spread(sf, p.Tail)
	}
	if pt == nil {
		t.out.Deliver(sf)
		return
	}
	switch {
	case p.CsumStart != 0: // row left_checksum
		sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum, p.CsumStart, p.CsumOffset
	case good && pt.csum:
		sf.Flags = hdrDataValid
	}
	if sum != 0 {
		t.partLate(sf, p.Info.Payload, p.Info.Payload+p.Info.PayloadLen, sum)
	}
	pt.ledger.Decided.left(&sf.Entry)
	t.out.Deliver(sf)
}

// single fills t.sf with one frame as it came.
func (t *Table) single(port uint32, r Reason, data []byte, ref uint64) *Superframe {
	sf := &t.sf // field by field: a literal would be built elsewhere and copied
	frags, refs, sums := sf.Frags[:0], sf.Refs[:0], sf.Sums[:0]
	*sf = Superframe{}
	sf.Packets, sf.Segments, sf.Len, sf.Reason = 1, 1, len(data), r
	sf.Port, sf.Frags, sf.Refs, sf.Sums = port, append(frags, data), append(refs, ref), sums
	return sf
}

// spread puts a lone packet's further fragments into t.sf. It is never held, so it may have more than the table's lists have
// room for; they grow then.
func (t *Table) spread(sf *Superframe, tail []Fragment) {
	for i := range tail {
		sf.Refs = append(sf.Refs, tail[i].Ref)
		if len(tail[i].Data) > 0 {
			sf.Frags = append(sf.Frags, tail[i].Data)
			sf.Len += len(tail[i].Data)
		}
	}
}

// emit gives out the frame of a closed slot.
func (t *Table) emit(pt *port, n uint32, s *slot) {
	o := &t.origins[n]
	sf := t.single(uint32(s.meta>>metaPort)&0xffff, s.reason, o.head, o.ref)
	sf.TCP = o.tcp
	sf.Held = t.now - s.born
	l := &pt.ledger
	if s.trust != noTrust && pt.csum {
		sf.Flags = hdrDataValid
	}
	if s.trust == late {
		sf.Refs[0] &= lateRefs
	}
	if o.plain != 0 || s.segs == 1 && o.updates == 0 {
		if o.plain != 0 {
			sf.Segments = int(o.plain - 1)
		} else {
			l.waited(sf.Held)
		}
		if s.trust == late {
			t.partLate(sf, uint32(o.payload), o.end(), uint16(o.ref>>lateShift))
		} else if s.extra > 0 {
			t.gather(sf, s)
			for _, f := range sf.Frags[1:] {
				sf.Len += len(f)
			}
		}
	} else {
		t.merge(pt, sf, s, o)
		l.waited(sf.Held)
		l.Decided.Bytes += mergedBytes(&sf.Entry, int(o.payload))
	}
	l.Held -= uint64(sf.Packets) // first: from here on the packets are the Output's
	l.Decided.left(&sf.Entry)
	t.out.Deliver(sf)
}

// merge makes t.sf the frame of all packets of a slot.
func (t *Table) merge(pt *port, sf *Superframe, s *slot, o *origin) {
	end := o.end() // before gather: the header is long out of cache, and comes while gather works
	if s.trust == late {
		t.gatherLate(sf, s, o, end)
	} else if t.gather(sf, s); o.tail == 0 {
		sf.Frags[0] = o.head[:end:end] // without padding
	} else {
		t.trim(sf, o, end)
	}
	sf.Len = int(uint32(o.l3) + s.ipLen)
	sf.Merged, sf.Packets, sf.Segments = true, int(s.segs)+int(o.updates), int(s.segs)
	if s.segs > 1 {
		sf.HdrLen, sf.GSOSize = uint16(o.payload), s.gso
		sf.Flags, sf.CsumStart = hdrNeedsCsum, uint16(o.l4)
	}
	if s.meta&metaUDP != 0 {
		pt.udp.write(pt, sf, s, o)
		return
	}
	pt.rules.write(pt, sf, s, o)
}

// trim takes what stands behind the first packet's end out of t.sf, where that packet has several fragments.
func (t *Table) trim(sf *Superframe, o *origin, end uint32) {
	left := end
	kept := 0
	for i, f := range sf.Frags {
		if i <= int(o.tail) {
			n := min(uint32(len(f)), left)
			left -= n
			f = f[:n:n]
		}
		if len(f) > 0 {
			sf.Frags[kept] = f
			kept++
		}
	}
	sf.Frags = sf.Frags[:kept]
}

// gather puts what stands behind the first packet's first fragment into t.sf.
func (t *Table) gather(sf *Superframe, s *slot) {
	sf.lengthen(s.extra + 1)
	frags, refs := 1, 1
	left := s.extra
	for b := s.firstBlock; left > 0; b = t.blocks.next[b] {
		list := t.blocks.of(b, left)
		left -= uint32(len(list))
		for i := range list {
			e := &list[i]
			sf.Refs[refs] = e.Ref
			refs++
			if e.Data != nil {
				sf.Frags[frags] = e.Data
				frags++
			}
		}
	}
	sf.Frags, sf.Refs = sf.Frags[:frags], sf.Refs[:refs]
}

// lengthen makes t.sf, a single packet, have room for n Refs, and for a fragment more.
func (sf *Superframe) lengthen(n uint32) {
	sf.Frags = slices.Grow(sf.Frags, int(n))[:n+1]
	sf.Refs = slices.Grow(sf.Refs, int(n-1))[:n]
}

// end is where the first packet ends, without padding.
func (o *origin) end() uint32 {
	ip := o.head[o.l3:o.l4]
	if ip[0]>>4 == 6 {
		return uint32(o.l3) + 40 + uint32(binary.BigEndian.Uint16(ip[4:]))
	}
	return uint32(o.l3) + uint32(binary.BigEndian.Uint16(ip[2:]))
}
