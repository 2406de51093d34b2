package flowtable

import (
	"slices"

	"github.com/rscctl/rscctl/flowtable/checksum"
)

// Who copies a payload can sum it up in the same pass, so for ports that LeaveSums names the Output does that, and the table merges by
// headers. What it needs to go on is little: of each packet 16 bits, and the packets as they came.

// MaxLateRef bounds the Refs of packets for a port with LeaveSums: they are below it.
const MaxLateRef = 1 << lateShift

// LeaveSums says whether the Output verifies the payloads of a port's packets (Superframe.Sums), from the next packet on. It outlives
// SetPort. The profile rsc, packets in several fragments, and what leaves alone for its headers are verified by the table all the same.
func (t *Table) LeaveSums(index uint32, on bool) {
	if uint64(index) < uint64(len(t.ports)) {
		t.ports[index].late = on
	}
}

// fitsLate says whether a packet whose payload is to be verified late may go on. Beside packets that are verified already it is
// verified now.
func (t *Table) fitsLate(s *slot, p *Packet, j *judgement) bool {
	if s == nil || s.trust == late {
		return true
	}
	in := &p.Info
	good := checksum.Sum(p.Data[in.Payload:in.Payload+in.PayloadLen], uint32(j.late)) == 0xffff
	j.late = 0
	return good
}

// partLate makes t.sf, a single packet, one whose payload is a fragment of its own, with a sum. What is behind it is padding.
func (t *Table) partLate(sf *Superframe, payload, end uint32, sum uint16) {
	whole := sf.Frags[0]
	sf.Frags = append(sf.Frags[:0], whole[:payload:payload], whole[payload:end:len(whole)])
	sf.Sums = append(sf.Sums[:0], sum)
	if uint32(len(whole)) > end {
		sf.Frags, sf.Sums = append(sf.Frags, whole[end:]), append(sf.Sums, 0)
	}
}

// gatherLate puts the packets of a slot into t.sf: the headers, which are rewritten in memory of the table's so that the first
// packet stays what it was, and every payload with its sum.
func (t *Table) gatherLate(sf *Superframe, s *slot, o *origin, end uint32) {
	hdr := t.hdr[:copy(t.hdr[:], o.head[:o.payload])]
	sf.lengthen(s.extra + 1)
	sf.Sums = slices.Grow(sf.Sums, int(s.extra+1))[:s.extra+1]
	sf.Frags[0], sf.Frags[1] = hdr, o.head[o.payload:end:len(o.head)]
	sf.Sums[0] = uint16(o.ref >> lateShift)
	n := uint32(1)
	for b := s.firstBlock; n <= s.extra; b = t.blocks.next[b] {
		list := t.blocks.of(b, s.extra+1-n)
		frags, refs, sums := sf.Frags[n+1:][:len(list)], sf.Refs[n:][:len(list)], sf.Sums[n:][:len(list)]
		for i := range list {
			e := &list[i]
			frags[i], refs[i], sums[i] = e.Data, e.Ref&lateRefs, uint16(e.Ref>>lateShift)
		}
		n += uint32(len(list))
	}
	o.head = hdr
}

// TakeBack takes back what the table counted of a superframe, or of a lone packet, when it left, as a payload in it is wrong: its packets
// are to be decided on anew. headers is Superframe.HdrLen. The time that its first packet waited stays counted.
func (l *Ledger) TakeBack(e *Entry, headers int) {
	d := &l.Decided
	d.Frames[e.Reason]--
	if e.Merged {
		d.Superframes--
		d.Packets -= uint64(e.Packets)
		d.Updates -= uint64(e.Packets - e.Segments)
		d.Bytes -= mergedBytes(e, headers)
	}
}

// mergedBytes are the bytes of a superframe's packets as they came: the headers of those behind the first are as long as its own.
func mergedBytes(e *Entry, headers int) uint64 {
	return uint64(e.Len) + uint64(e.Packets-1)*uint64(headers)
}
