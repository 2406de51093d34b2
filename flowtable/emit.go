package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// alone lets a packet leave by itself, as it came. With hold 0 it waits in a slot if something older of its port is held.
// pt is nil for a packet of no known port, which is in no count.
func (t *Table) alone(pt *port, p *Packet, r Reason, verified bool) {
	segments := 1
	if p.Info.Payload != 0 && p.Info.PayloadLen == 0 {
		segments = 0
	}
	tcp := p.Info.Payload != 0
	if pt != nil && pt.hold == 0 && pt.oldest != 0 {
		if t.held >= t.maxHeld || t.free == 0 {
			t.relieve()
		}
		if pt.oldest != 0 {
			n, s := t.take(pt, p.Port)
			s.state, s.reason, s.verified = slotWaiting, r, verified
			s.meta = uint64(p.Port) << metaPort
			t.origins[n] = origin{head: p.Data, ref: p.Ref, plain: uint8(1 + segments), tcp: tcp}
			t.held++
			pt.ledger.Held++
			return
		}
	}
	sf := t.single(p.Port, r, p.Data, p.Ref)
	sf.Segments, sf.TCP = segments, tcp
	if pt == nil {
		t.out.Deliver(sf)
		return
	}
	if verified && pt.csum {
		sf.Flags = hdrDataValid
	}
	pt.ledger.Decided.left(&sf.Entry)
	t.out.Deliver(sf)
}

// single fills t.sf with one frame as it came.
func (t *Table) single(port uint32, r Reason, data []byte, ref uint64) *Superframe {
	t.frags[0], t.refs[0] = data, ref
	t.sf = Superframe{
		Entry: Entry{Packets: 1, Segments: 1, Len: len(data), Reason: r},
		Port:  port, Frags: t.frags[:1], Refs: t.refs[:1],
	}
	return &t.sf
}

// emit gives out the frame of a closed slot.
func (t *Table) emit(pt *port, n uint32, s *slot) {
	o := &t.origins[n]
	sf := t.single(uint32(s.meta>>metaPort)&0xffff, s.reason, o.head, o.ref)
	sf.TCP = o.tcp
	sf.Held = t.now - s.born
	if s.verified && pt.csum {
		sf.Flags = hdrDataValid
	}
	switch {
	case o.plain != 0:
		sf.Segments = int(o.plain - 1)
	case s.segs == 1:
		if s.updated {
			end := o.end()
			t.gather(sf, s)
			t.updateSingle(s, o)
			t.frags[0], sf.Len = o.head[:end:end], int(end) // several packets in one: their padding is none of it
		}
	default:
		end := o.end() // before gather: the header is long out of cache, and comes while gather works
		t.gather(sf, s)
		t.merge(pt, sf, s, o, end)
	}
	l := &pt.ledger
	l.Held -= 1 + uint64(s.extra) // first: for the Output the packets are its own
	l.Decided.left(&sf.Entry)
	if sf.Merged {
		l.Decided.Bytes += uint64(sf.Len) + uint64(s.extra)*uint64(o.payload) // their headers are as long
	}
	if o.plain == 0 {
		l.waited(sf.Held)
	}
	t.out.Deliver(sf)
}

// gather puts what stands behind the first packet into t.sf.
func (t *Table) gather(sf *Superframe, s *slot) {
	frags, refs := 1, 1
	left := s.extra
	for b := s.firstBlock; left > 0; b = t.blocks.next[b] {
		n := min(left, blockLen)
		left -= n
		list := &t.blocks.list[b]
		for i := range list[:n] {
			e := &list[i]
			t.refs[refs] = e.ref
			refs++
			if e.frag != nil {
				t.frags[frags] = e.frag
				frags++
			}
		}
	}
	sf.Frags, sf.Refs = t.frags[:frags], t.refs[:refs]
	sf.Packets, sf.Merged = refs, true
}

// end is where the first packet ends, without padding.
func (o *origin) end() uint32 {
	ip := o.head[o.l3:o.l4]
	if ip[0]>>4 == 6 {
		return uint32(o.l3) + 40 + uint32(binary.BigEndian.Uint16(ip[4:]))
	}
	return uint32(o.l3) + uint32(binary.BigEndian.Uint16(ip[2:]))
}

// merge rewrites the headers, in the first packet's memory, to those of the superframe, and fills sf.
func (t *Table) merge(pt *port, sf *Superframe, s *slot, o *origin, end uint32) {
	head := o.head
	ip, tcp := head[o.l3:o.l4], head[o.l4:o.payload]
	l4len := s.ipLen - uint32(o.l4-o.l3)
	var pseudo uint32
	ipv6 := s.meta&metaIPv6 != 0
	if ipv6 {
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
	sf.Segments = int(s.segs)
	sf.HdrLen, sf.GSOSize = uint16(o.payload), s.gso
	sf.FixedID = s.idMode == idFixed
	sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum, uint16(o.l4), 16
	if pt.rscInfo { // virtio 1.2, 5.1.6.4.1: the fields count segments and duplicate ACKs instead
		sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum|hdrRSCInfo, s.segs, 0
	}
	t.frags[0] = head[:end:end]
	sf.Len = int(uint32(o.l3) + s.ipLen)
}

// updateSingle brings the window of absorbed updates, and the smallest TTL, into a packet that found no second one. Its
// checksums are corrected, not computed anew (RFC 1624).
func (t *Table) updateSingle(s *slot, o *origin) {
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
