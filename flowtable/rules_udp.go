package flowtable

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// maxDatagrams is how many datagrams one frame has at most: Linux cuts no more (UDP_MAX_SEGMENTS, include/linux/udp.h, 64 until 6.9).
const maxDatagrams = 64

// udpRules are the rules for UDP, in both profiles. They have the aim of groRules, that a Segmenter gives the datagrams back bit for bit,
// and are the Linux kernel's (net/ipv4/udp_offload.c) but stricter where docs/rules.md says so. Cutting a UDP_L4 frame changes lengths,
// both checksums and the IPv4 ID (it counts up, or stands still); all datagrams have gso_size bytes of payload, and the last one what is left.
type udpRules struct{}

// tags is the profile's business.
func (*udpRules) tags(c *PortConfig) bool { return c.MergeVLAN }

// admit lets datagrams in whose checksums are there and right.
func (r *udpRules) admit(pt *port, _ *slot, p *Packet, w *words) judgement {
	j := judgement{reason: r.verify(pt, p)}
	j.verified = (j.reason == open || j.reason == ReasonNoncanonical) && !pt.noVerify
	switch {
	case j.reason != open:
		return j
	case isTunnel(p.Data, &p.Info):
		j.reason = ReasonNotTCP
		return j
	// Row empty: an empty datagram would vanish in a frame.
	case p.Info.PayloadLen == 0:
		j.reason = ReasonEmpty
		return j
	}
	readIPWords(p.Data, &p.Info, w)
	w[3], w[4], w[5] = 0, 0, 0 // TCP's
	j.do = join
	return j
}

// Row udp_tunnel. The sockets of VXLAN, GENEVE and bareudp take UDP_L4 frames since Linux 5.13 (udp_allow_gso) and lost what is in them, until
// 3d010c8031e3 ("udp: do not accept non-tunnel GSO skbs landing in a tunnel") in 6.8.5 made them cut each again. Seen by others:
// tailscale/tailscale issue 11026.
const (
	portVXLAN      = 4789 // RFC 7348
	portVXLANLinux = 8472 // drivers/net/vxlan: what it has without another one
	portGENEVE     = 6081 // RFC 8926
	portMPLS       = 6635 // RFC 7510
)

// isTunnel tells whether a datagram is for a tunnel's end.
func isTunnel(data []byte, in *packet.Info) bool {
	switch binary.BigEndian.Uint16(data[in.L4+2:]) {
	case portVXLAN, portVXLANLinux, portGENEVE, portMPLS:
		return true
	}
	return false
}

// verify checks both checksums of a datagram. It returns open when they are right and what a segmentation would write, or else why not.
func (*udpRules) verify(pt *port, p *Packet) Reason {
	in := &p.Info
	field := binary.BigEndian.Uint16(p.Data[in.L4+6:])
	// Row zero_checksum: nobody knows whether the payload is whole, and a frame's header would say that it is.
	if field == 0 {
		return ReasonZeroChecksum
	}
	if pt.noVerify {
		return open
	}
	pseudo, canonical, good := verifyIP(p, 17)
	if !good {
		return ReasonBadIPChecksum
	}
	switch whole := p.CsumStart != 0 || p.sum(pseudo) == 0xffff; { // row left_checksum
	case !whole && field == checksum.Fold(uint64(pseudo)):
		return ReasonPartialChecksum
	case !whole:
		return ReasonBadUDPChecksum
	case !canonical:
		return ReasonNoncanonical
	}
	return open
}

// fits compares all that the headers say with what cutting would write at this place of the train.
func (*udpRules) fits(pt *port, s *slot, _ *origin, p *Packet, w *words) Reason {
	in := &p.Info
	switch {
	case !w.equals(&s.w):
		return w.mismatchOf(&s.w, &groMask, in.Family == 6)
	case in.Family == 4 && !followsID(pt, s, binary.BigEndian.Uint16(p.Data[in.L3+4:]), w.df()):
		return ReasonIPID
	case in.PayloadLen > uint32(s.gso):
		return ReasonLarger
	}
	return open
}

// start notes the size of the train's datagrams and its IPv4 ID.
func (*udpRules) start(_ *port, s *slot, p *Packet, _ *words) Reason {
	in := &p.Info
	s.nxt, s.flags = 0, 0
	s.gso = uint16(in.PayloadLen)
	s.id, s.idMode = 0, idUnknown
	if in.Family == 4 {
		s.id = binary.BigEndian.Uint16(p.Data[in.L3+4:])
	}
	return open
}

// grow keeps what moves on along a train, and ends it where nothing can follow.
func (*udpRules) grow(_ *port, s *slot, p *Packet, _ *words) Reason {
	in := &p.Info
	if in.Family == 4 {
		s.nextID(binary.BigEndian.Uint16(p.Data[in.L3+4:]))
	}
	switch {
	case in.PayloadLen < uint32(s.gso):
		return ReasonShort
	case s.segs == maxDatagrams:
		return ReasonMaxSegments
	}
	return open
}

// write makes the first datagram's headers those of the whole frame, in place. The checksum becomes the pseudo header's, and
// NEEDS_CSUM says so (virtio 1.2, 5.1.6.4.1).
func (*udpRules) write(_ *port, sf *Superframe, s *slot, o *origin) {
	ip, udp := o.head[o.l3:o.l4], o.head[o.l4:o.payload]
	l4len := s.ipLen - uint32(o.l4-o.l3)
	pseudo := s.lengthen(ip, 17, l4len)
	binary.BigEndian.PutUint16(udp[4:], uint16(l4len))
	binary.BigEndian.PutUint16(udp[6:], checksum.Fold(uint64(pseudo)))
	sf.GSOType, sf.CsumOffset = gsoUDPL4, 6
	sf.FixedID = s.idMode == idFixed
}
