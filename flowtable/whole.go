package flowtable

import (
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// Row gso_whole. A superframe need not be made here: a neighbour sends one, which would be cut only for its packets to be merged again. It may leave as
// it is where the port's rules would have let the table make it. It waits for nothing, and overtakes nothing of its flow.

// complete makes the checksum of a packet that its sender has left to others what it is for.
func (p *Packet) complete() {
	if p.CsumStart != 0 {
		_ = checksum.Complete(p.Data, int(p.CsumStart), int(p.CsumOffset)) // whoever says that it is there has looked
		p.CsumStart = 0
	}
}

// TakesWhole says whether a superframe of TCP or UDP that came as one may leave as it is. sf has the caller's Port, Frags, Len, HdrLen, GSOType,
// GSOSize and Packets, and in is what packet.ParseHead says of it, to which what packet.ParseUDP says is added. Nothing else is changed. The caller answers for the rest: the lengths are the
// frame's, the checksum is the pseudo header's sum, and what is cut at gso_size are the packets.
func (t *Table) TakesWhole(sf *Superframe, in *packet.Info) bool {
	if uint64(sf.Port) >= uint64(len(t.ports)) {
		return false
	}
	pt := &t.ports[sf.Port]
	if sf.GSOType == gsoUDPL4 {
		packet.ParseUDP(sf.Frags[0], sf.Len, in)
		return in.Verdict == packet.OK && pt.udp != nil && pt.shut(sf.Frags[0], in) == open && !isTunnel(sf.Frags[0], in) && sf.Packets <= maxDatagrams && t.holdsWhole(pt, sf, in)
	}
	if in.Verdict != packet.OK || !sound(sf.Frags[0], sf.Len, in) {
		return false
	}
	// Microsoft's rules are about more than cutting gives back: the table follows them packet by packet.
	if _, rsc := pt.rules.(*rscRules); rsc || pt.shut(sf.Frags[0], in) != open {
		return false
	}
	switch flags := in.TCPFlags; {
	case flags&(packet.SYN|packet.RST|packet.URG) != 0, flags&packet.ACK == 0:
		return false
	case flags&packet.CWR != 0 && !pt.ecn: // virtio 1.2, 5.1.6.4.1
		return false
	}
	return t.holdsWhole(pt, sf, in)
}

// holdsWhole says whether a superframe has a size that the port's rules would have let it get.
func (t *Table) holdsWhole(pt *port, sf *Superframe, in *packet.Info) bool {
	return sf.Packets > 1 && uint32(sf.Packets) <= pt.maxSeg && uint32(sf.Len)-in.L3 <= pt.longest(in)
}

// PassWhole gives out a superframe that TakesWhole has let in, behind all that is held of its flow, for the reason gso_input. Refs may be
// empty: then its memory is lent for as long as the caller says.
func (t *Table) PassWhole(sf *Superframe, in *packet.Info, now int64) {
	t.tick(now)
	pt := &t.ports[sf.Port]
	var k key
	readKey(sf.Frags[0], in, sf.Port, &k)
	if _, n := t.find(&k); n != 0 {
		t.shutSlot(pt, n, ReasonGSOInput)
	}
	if pt.hold == 0 { // what of its flow left alone may wait behind others
		t.clear(pt, ReasonBurstEnd)
	}
	sf.Entry = Entry{Packets: sf.Packets, Segments: sf.Packets, Len: sf.Len, Reason: ReasonGSOInput, Merged: true, TCP: !in.UDP}
	sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum, uint16(in.L4), 16
	switch {
	case in.UDP:
		sf.CsumOffset = 6
	case pt.rscInfo: // row rsc_info, as in tcpRules.write
		sf.Flags, sf.CsumStart, sf.CsumOffset = hdrNeedsCsum|hdrRSCInfo, uint16(sf.Packets), 0
	}
	l, bytes := &pt.ledger, mergedBytes(&sf.Entry, int(sf.HdrLen))
	l.In += uint64(sf.Packets)
	l.InBytes += bytes
	l.Decided.left(&sf.Entry)
	l.Decided.Bytes += bytes
	t.out.Deliver(sf)
}
