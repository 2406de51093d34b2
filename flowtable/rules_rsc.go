package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// rscRules are the profile rsc for TCP: Microsoft's rules for receive segment coalescing. They keep the byte stream, the last
// acknowledgement and window, and every mark of congestion, but not the packets: sizes, IPv4 IDs and TTLs may differ. Virtio
// has no room for a count of duplicate acknowledgements or for a difference of timestamps, so what Windows would merge and
// report there leaves alone here.
type rscRules struct{ tcpRules }

// tags: Microsoft's rules promise merging for untagged Ethernet frames only.
func (*rscRules) tags(*PortConfig) bool { return false }

func (r *rscRules) admit(pt *port, s *slot, p *Packet, w *words) judgement {
	in := &p.Info
	sum := r.verify(pt, p)
	j := judgement{reason: r.alone(in.TCPFlags, sum)}
	j.verified = (sum == open || sum == ReasonNoncanonical) && !pt.noVerify
	if j.reason != open {
		return j
	}
	if in.PayloadLen == 0 {
		j.reason = r.empty(s, p)
		if j.reason == ReasonWindowUpdate && r.absorbs(s, p, w) {
			j.do = absorb
		}
		return j
	}
	switch {
	case in.TCPFlags&packet.CWR != 0 && !pt.ecn: // row cwr: without GUEST_ECN the guest does not expect the mark
		j.reason = ReasonCWR
	case in.TCPFlags&packet.ACK == 0: // row no_ack
		j.reason = ReasonNoACK
	case in.TCPFlags&packet.FIN != 0: // row fin: Microsoft's exception 3, for every flag but PSH and ACK
		j.reason = ReasonFIN
	case p.Data[in.L4+12]&15 != 0: // row tcp_flags_change: NS and the reserved bits, exception 3 too
		j.reason = ReasonTCPFlagsChange
	case !timestampsOnly(p.Data[in.L4+20 : in.Payload]): // row options_change: exception 4
		j.reason = ReasonOptionsChange
	default:
		readWords(p.Data, in, w)
		j.do = join
	}
	return j
}

// absorbs tells whether a window update may vanish in the superframe, which takes over its window: only if the packet says
// nothing else that the superframe does not.
func (*rscRules) absorbs(s *slot, p *Packet, w *words) bool {
	in := &p.Info
	if in.TCPFlags&packet.PSH != 0 {
		return false
	}
	readWords(p.Data, in, w)
	return !w.differs(&s.w, &rscMask) && timestampsOnly(p.Data[in.L4+20:in.Payload])
}

func (r *rscRules) fits(_ *port, s *slot, o *origin, p *Packet, w *words) Reason {
	if w.differs(&s.w, &rscMask) {
		return w.mismatchOf(&s.w, &rscMask, p.Info.Family == 6)
	}
	if r.restDiffers(o, p) {
		return ReasonOptionsChange
	}
	if int32(w.ack()-s.ack) < 0 { // row ack_change: an acknowledgement never goes back
		return ReasonACKChange
	}
	return r.follows(s, p)
}

func (r *rscRules) start(pt *port, s *slot, p *Packet, w *words) Reason {
	r.tcpRules.start(s, p, w)
	return r.push(pt, p)
}

// grow: acknowledgement and window are the last packet's, the TTL is the smallest, PSH is set if any had it, and gso_size is
// the largest payload. An absorbed window update has no payload and neither PSH nor another acknowledgement.
func (r *rscRules) grow(pt *port, s *slot, p *Packet, w *words) Reason {
	s.nxt += p.Info.PayloadLen
	s.ack, s.win = w.ack(), w.window()
	s.flags |= p.Info.TCPFlags & packet.PSH
	s.hop = min(s.hop, uint8(w[1]>>56))
	s.gso = max(s.gso, uint16(p.Info.PayloadLen))
	return r.push(pt, p)
}

// push: row psh. Windows merges beyond PSH; the knob is for guests whose applications wait for the end of a message.
func (*rscRules) push(pt *port, p *Packet) Reason {
	if pt.pshClose && p.Info.TCPFlags&packet.PSH != 0 {
		return ReasonPSH
	}
	return open
}

// timestampsOnly tells whether a TCP header's options are none, or NOP NOP TIMESTAMP: what rsc merges.
func timestampsOnly(options []byte) bool {
	return len(options) == 0 || len(options) == 12 && binary.BigEndian.Uint32(options) == 0x0101080a
}
