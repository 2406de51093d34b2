package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// groRules are the profile gro for TCP. They have one aim: a Segmenter gives the packets back bit for bit. So a segment joins
// only if all that its header says follows from the first one's header and from its place in the train, and the superframe
// ends where that stops to hold.
type groRules struct{ tcpRules }

func (*groRules) tags(c *PortConfig) bool { return c.MergeVLAN }

func (r *groRules) admit(pt *port, s *slot, p *Packet, w *words) judgement {
	in := &p.Info
	sum := r.verify(pt, p)
	j := judgement{reason: r.alone(in.TCPFlags, sum)}
	j.verified = (sum == open || sum == ReasonNoncanonical) && !pt.noVerify
	if j.reason != open {
		return j
	}
	if sum == ReasonNoncanonical { // row noncanonical_checksum: cutting would write the other form of 0
		j.reason = sum
		return j
	}
	if in.PayloadLen == 0 {
		j.reason = r.empty(s, p)
		return j
	}
	switch {
	case in.TCPFlags&packet.CWR != 0: // row cwr: the header cannot say which segment had it
		j.reason = ReasonCWR
		return j
	case in.TCPFlags&packet.ACK == 0: // row no_ack: no segment of an established connection
		j.reason = ReasonNoACK
		return j
	}
	readWords(p.Data, in, w)
	j.do = join
	switch { // rows psh, fin: cutting puts both on the last packet, so nothing may follow one that has them
	case in.TCPFlags&packet.PSH != 0:
		j.do, j.reason = joinOnly, ReasonPSH
	case in.TCPFlags&packet.FIN != 0:
		j.do, j.reason = joinOnly, ReasonFIN
	}
	return j
}

func (r *groRules) fits(pt *port, s *slot, o *origin, p *Packet, w *words) Reason {
	in := &p.Info
	if !w.equals(&s.w) {
		return w.mismatchOf(&s.w, &groMask, in.Family == 6)
	}
	if r.restDiffers(o, p) {
		return ReasonOptionsChange
	}
	if why := r.follows(s, p); why != open {
		return why
	}
	if in.Family == 4 && !followsID(pt, s, binary.BigEndian.Uint16(p.Data[in.L3+4:]), w[2]&0x4000 != 0) {
		return ReasonIPID
	}
	if in.PayloadLen > uint32(s.gso) { // row larger: gso_size is the first one's, and cutting makes none larger
		return ReasonLarger
	}
	return open
}

// followsID tells whether an IPv4 ID goes on as the train does: counting, or, for atomic datagrams (DF set, RFC 6864), fixed.
// The second packet decides which.
func followsID(pt *port, s *slot, id uint16, df bool) bool {
	switch id - s.id {
	case 1:
		return s.idMode != idFixed
	case 0:
		return s.idMode != idCounts && df && pt.fixedID
	}
	return false
}

func (r *groRules) start(_ *port, s *slot, p *Packet, w *words) Reason {
	r.tcpRules.start(s, p, w)
	return open
}

func (*groRules) grow(_ *port, s *slot, p *Packet, w *words) Reason {
	in := &p.Info
	s.nxt += in.PayloadLen
	s.flags |= in.TCPFlags & (packet.PSH | packet.FIN)
	if in.Family == 4 {
		id := binary.BigEndian.Uint16(p.Data[in.L3+4:])
		s.idMode = idCounts
		if id == s.id {
			s.idMode = idFixed
		}
		s.id = id
	}
	switch {
	case in.PayloadLen < uint32(s.gso): // row short: only the last packet that cutting makes may be shorter
		return ReasonShort
	case in.TCPFlags&packet.PSH != 0:
		return ReasonPSH
	case in.TCPFlags&packet.FIN != 0:
		return ReasonFIN
	}
	return open
}
