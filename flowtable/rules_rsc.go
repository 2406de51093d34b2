package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// rscRules are the profile rsc for TCP: Microsoft's rules for receive segment coalescing. They keep the byte stream, the last
// acknowledgement and window, and every mark of congestion. They do not keep the packets: sizes, IPv4 IDs and TTLs may differ.
//
// Virtio has no field for a difference of timestamps, so timestamps must be equal here, though Windows could take a difference.
// It has one for duplicate acknowledgements, but Windows switches coalescing off when the count is above 0, so they leave alone.
type rscRules struct{ tcpRules }

// tags: Microsoft's rules promise merging for untagged Ethernet frames only.
func (*rscRules) tags(*PortConfig) bool { return false }

// admit sorts out Microsoft's exceptions, the cases in which a segment ends coalescing and is indicated alone.
func (r *rscRules) admit(pt *port, s *slot, p *Packet, w *words) judgement {
	in := &p.Info
	// A sum of 0xffff is as good as any here: nobody gets the packets back. And never late: a window update that a damaged segment
	// let vanish could not be told from one behind good data.
	sum, _ := r.verify(pt, p, false)
	j := judgement{reason: r.alone(in.TCPFlags, sum)}
	j.verified = (sum == open || sum == ReasonNoncanonical) && !pt.noVerify
	if j.reason != open {
		return j
	}
	// Row window_update: Windows wants window updates merged behind data. Every other empty segment leaves alone.
	if in.PayloadLen == 0 {
		j.reason = r.empty(s, p)
		if j.reason == ReasonWindowUpdate && r.absorbs(s, p, w) {
			j.do = absorb
		}
		return j
	}
	switch {
	// Row cwr: without GUEST_ECN a GSO frame must not carry the mark (virtio 1.2, 5.1.6.4.1).
	case in.TCPFlags&packet.CWR != 0 && !pt.ecn:
		j.reason = ReasonCWR
	// Row no_ack.
	case in.TCPFlags&packet.ACK == 0:
		j.reason = ReasonNoACK
	// Row fin: exception 3 is any flag but PSH and ACK.
	case in.TCPFlags&packet.FIN != 0:
		j.reason = ReasonFIN
	// Row tcp_flags_change: NS and the reserved bits are flags of exception 3 too.
	case p.Data[in.L4+12]&15 != 0:
		j.reason = ReasonTCPFlagsChange
	// Row options_change: exception 4 is any option but timestamps.
	case !timestampsOnly(p.Data[in.L4+20 : in.Payload]):
		j.reason = ReasonOptionsChange
	default:
		readWords(p.Data, in, w)
		j.do = join
	}
	return j
}

// absorbs tells whether a window update may vanish in the superframe, which takes over its window. It may if it says nothing
// beside the window that the superframe does not say as well (row window_update_differs).
func (*rscRules) absorbs(s *slot, p *Packet, w *words) bool {
	in := &p.Info
	// PSH belongs to data; the superframe would have to claim it for data that came without.
	if in.TCPFlags&packet.PSH != 0 {
		return false
	}
	readWords(p.Data, in, w)
	return !w.differs(&s.w, &rscMask) && timestampsOnly(p.Data[in.L4+20:in.Payload])
}

// fits leaves out what the newest packet or the smallest value decides: TTL, window, and an acknowledgement that advances.
// IPv4 IDs and sizes may be anything (Microsoft's table of header fields).
func (r *rscRules) fits(_ *port, s *slot, o *origin, p *Packet, w *words) Reason {
	if w.differs(&s.w, &rscMask) {
		return w.mismatchOf(&s.w, &rscMask, p.Info.Family == 6)
	}
	// admit lets in no list longer than the words hold, but that is its rule, not this one's.
	if r.restDiffers(o, p) {
		return ReasonOptionsChange
	}
	// Row ack_change: the superframe has the last acknowledgement, and that must not go back.
	if int32(w.ack()-s.w.ack()) < 0 {
		return ReasonACKChange
	}
	return r.follows(s, p)
}

// start closes at once only with the knob for PSH.
func (r *rscRules) start(pt *port, s *slot, p *Packet, w *words) Reason {
	r.tcpRules.start(s, p)
	return r.push(pt, p)
}

// grow keeps the last acknowledgement and window, the smallest TTL, PSH if any packet had it, and the largest payload as
// gso_size, as the guest takes that for the MSS. An absorbed window update changes the window and the TTL only: it has no
// payload, no PSH, and no other acknowledgement.
func (r *rscRules) grow(pt *port, s *slot, p *Packet, w *words) Reason {
	s.nxt += p.Info.PayloadLen
	// fits has let in no acknowledgement that goes back, so the newest is the largest.
	s.w.moveOn(w)
	s.flags |= p.Info.TCPFlags & packet.PSH
	s.gso = max(s.gso, uint16(p.Info.PayloadLen))
	return r.push(pt, p)
}

// push closes a superframe at PSH if the operator wants that (row psh). Windows merges beyond PSH; the knob is for guests whose
// applications wait for the end of a message.
func (*rscRules) push(pt *port, p *Packet) Reason {
	if pt.pshClose && p.Info.TCPFlags&packet.PSH != 0 {
		return ReasonPSH
	}
	return open
}

// timestampsOnly tells whether a TCP header's options are none, or NOP NOP TIMESTAMP, the layout that everybody sends (RFC 7323,
// appendix A). Another layout of the same is not recognized and leaves alone.
func timestampsOnly(options []byte) bool {
	return len(options) == 0 || len(options) == 12 && binary.BigEndian.Uint32(options) == 0x0101080a
}
