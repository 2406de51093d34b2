package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// groRules are the profile gro for TCP. They have one aim: a Segmenter gives the packets back bit for bit.
//
// Cutting copies the first packet's header to every packet, and changes six things only: lengths, both checksums, the sequence
// number (it moves on by the payload), the IPv4 ID (it counts up, or stands still), CWR (first packet only), and FIN and PSH (last
// packet only). All packets get gso_size bytes, and the last one what is left. So a segment joins if everything else is equal
// to the first packet's and these are what cutting would write at its place. The superframe ends when no later segment could
// fit behind it. These are the Linux kernel's rules too (net/ipv4/tcp_offload.c), but for the checks that docs/rules.md names.
type groRules struct{ tcpRules }

// tags: row vlan_tag. The tag is compared like every other field, so cutting gives it back.
func (*groRules) tags(c *PortConfig) bool { return c.MergeVLAN }

// admit lets data segments of an established connection in whose every bit cutting can write again.
func (r *groRules) admit(pt *port, s *slot, p *Packet, w *words) judgement {
	in := &p.Info
	// Verified first, and for every packet: what is merged can never be verified again, as its sum is replaced. Of the payload the
	// Output may do it, while the packets are still what they were.
	sum, late := r.verify(pt, p, pt.late)
	j := judgement{reason: r.alone(in.TCPFlags, sum), late: late}
	// What leaves alone may be called valid when both sums were right, in whatever form.
	j.verified = (sum == open || sum == ReasonNoncanonical) && !pt.noVerify
	if j.reason != open {
		return j
	}
	// Row noncanonical_checksum: the sum is right, but cutting would write the other form of 0.
	if sum == ReasonNoncanonical {
		j.reason = sum
		return j
	}
	// Rows of empty segments: an empty packet would vanish in a superframe, and cutting could not give it back.
	if in.PayloadLen == 0 {
		j.reason = r.empty(s, p)
		return j
	}
	switch {
	// Row cwr: a virtio header can say that CWR was on the first packet only. Nobody could put it back where it was.
	case in.TCPFlags&packet.CWR != 0:
		j.reason = ReasonCWR
		return j
	// Row no_ack: this is no segment of an established connection.
	case in.TCPFlags&packet.ACK == 0:
		j.reason = ReasonNoACK
		return j
	}
	readWords(p.Data, in, w)
	j.do = join
	// Rows psh, fin: cutting puts both flags on the last packet, so nothing may follow a packet that has them.
	switch {
	case in.TCPFlags&packet.PSH != 0:
		j.do, j.reason = joinOnly, ReasonPSH
	case in.TCPFlags&packet.FIN != 0:
		j.do, j.reason = joinOnly, ReasonFIN
	}
	return j
}

// fits compares all that the headers say with what cutting would write at this place of the train.
func (r *groRules) fits(pt *port, s *slot, o *origin, p *Packet, w *words) Reason {
	in := &p.Info
	// All rows of "What must be equal" at once. Which one it is matters only when one differs.
	if !w.equals(&s.w) {
		return w.mismatchOf(&s.w, &groMask, in.Family == 6)
	}
	// More than 16 bytes of options, which the words do not hold.
	if r.restDiffers(o, p) {
		return ReasonOptionsChange
	}
	// Rows gap, retransmit.
	if why := r.follows(s, p); why != open {
		return why
	}
	// Row ip_id. IPv6 has no ID.
	if in.Family == 4 && !followsID(pt, s, binary.BigEndian.Uint16(p.Data[in.L3+4:]), w.df()) {
		return ReasonIPID
	}
	// Row larger: gso_size is the first packet's payload, and cutting makes no packet larger than that.
	if in.PayloadLen > uint32(s.gso) {
		return ReasonLarger
	}
	return open
}

// followsID tells whether an IPv4 ID goes on as the train does. The second packet decides how that is: counting, or standing
// still. An ID may stand still only on atomic datagrams (DF set, RFC 6864), where it means nothing. A guest that cuts such a
// superframe counts the ID up, which that RFC allows; our own Segmenter is told (Superframe.FixedID) and gives it back.
func followsID(pt *port, s *slot, id uint16, df bool) bool {
	switch id - s.id { // wraps at 65,536, as senders' counters do
	case 1:
		return s.idMode != idFixed
	case 0:
		return s.idMode != idCounts && df && pt.fixedID
	}
	return false
}

// nextID notes the IPv4 ID of a packet that followsID has let in.
func (s *slot) nextID(id uint16) {
	s.idMode = idCounts
	if id == s.id {
		s.idMode = idFixed
	}
	s.id = id
}

// start never closes: a packet that nothing may follow is not let in as the first.
func (r *groRules) start(_ *port, s *slot, p *Packet, w *words) Reason {
	r.tcpRules.start(s, p)
	if p.Info.Family == 4 {
		s.fixed.of(s, p.Data[p.Info.L3:])
	}
	return open
}

// grow needs to keep only what moves on along a train: sequence and ID. All else is equal to the first packet's.
func (*groRules) grow(_ *port, s *slot, p *Packet, w *words) Reason {
	in := &p.Info
	// A train of two shows whether its IDs count: followsID has let this one in, so from here on it must go on that way.
	if in.Family == 4 {
		s.nextID(binary.BigEndian.Uint16(p.Data[in.L3+4:]))
	}
	return advance(s, in.TCPFlags, in.PayloadLen)
}

// advance moves a train on by a segment with these flags and so many bytes, and tells why nothing can follow it, or open.
func advance(s *slot, flags uint8, length uint32) Reason {
	s.nxt += length
	// Only the last packet can have them, as the superframe ends with it.
	s.flags |= flags & (packet.PSH | packet.FIN)
	// Rows short, psh, fin: what can stand on the last packet of a cut only ends the superframe.
	switch {
	case length < uint32(s.gso):
		return ReasonShort
	case flags&packet.PSH != 0:
		return ReasonPSH
	case flags&packet.FIN != 0:
		return ReasonFIN
	}
	return open
}
