package flowtable

import (
	"encoding/binary"
	"errors"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// The errors of a Segmenter.
var (
	ErrGSOType   = errors.New("segment: gso_type does not fit the frame")
	ErrGSOSize   = errors.New("segment: gso_size is 0")
	ErrGSOHeader = errors.New("segment: headers are not those of a superframe")
	ErrGSOLength = errors.New("segment: IP length is not the frame's")
	ErrShort     = errors.New("segment: destination is too short for a packet")
)

// maxHeader is the room for headers: Ethernet, one tag, IP with options or extension headers, TCP.
const maxHeader = 256

// GSO is what a virtio_net_hdr says of a superframe.
type GSO struct {
	Type    uint8  // gso_type: TCPV4 (1) or TCPV6 (4), perhaps with ECN (0x80), or UDP_L4 (5)
	Size    uint16 // gso_size: payload of each packet but the last
	FixedID bool   // the IPv4 ID stands still instead of counting
}

// Segmenter cuts a superframe into the packets that a wire carries, as a NIC does (TSO): CWR goes with the first packet, FIN
// and PSH with the last, sequence numbers and IPv4 IDs count up from the frame's, lengths and both checksums are written
// anew, and all else is as in the frame. UDP_L4 is cut into datagrams likewise. For frames of the gro profile that gives back the packets that were merged.
//
// A Segmenter may be used again and again; it allocates nothing. It is not safe for concurrent use.
type Segmenter struct {
	frags  [][]byte
	frag   int // next payload byte: frags[frag][off]
	off    int
	hdr    [maxHeader]byte
	hdrLen int
	l3, l4 int
	ipv6   bool
	udp    bool
	fixed  bool
	size   int
	left   int // payload bytes
	total  int // payload bytes of the frame
	next   int // index of the next packet
	pseudo uint32
	seq    uint32
	id     uint16
	flags  uint8
}

// Init takes a frame, the concatenation of frags, Ethernet first. It stays in use until the last call of Next. Whatever
// contradicts itself is refused with one of the errors above: the description may come from a guest. The IP length must be
// the frame's, or 0, as some guests leave it for their device to fill in.
func (s *Segmenter) Init(frags [][]byte, g GSO) error {
	total := 0
	for _, f := range frags {
		total += len(f)
	}
	*s = Segmenter{}
	have := 0
	for _, f := range frags {
		have += copy(s.hdr[have:], f)
	}
	if err := s.begin(have, total, g); err != nil {
		return err
	}
	s.frags = frags
	s.left = s.total
	s.off = s.hdrLen
	s.settle()
	return nil
}

// Dissect is Init for a frame of total bytes that somebody else cuts: head holds its first ones, and nothing else is looked at. Next
// has nothing to give; the other methods are as after Init.
func (s *Segmenter) Dissect(head []byte, total int, g GSO) error {
	*s = Segmenter{}
	return s.begin(copy(s.hdr[:], head), total, g)
}

// begin reads the headers, which are among the first have bytes of a frame.
func (s *Segmenter) begin(have, total int, g GSO) error {
	s.fixed, s.size = g.FixedID, int(g.Size)
	if g.Size == 0 {
		return ErrGSOSize
	}
	if err := s.dissect(have, total, g.Type); err != nil {
		return err
	}
	s.total = total - s.hdrLen
	return nil
}

// settle moves the position to a fragment that has bytes.
func (s *Segmenter) settle() {
	for s.frag < len(s.frags) && s.off >= len(s.frags[s.frag]) {
		s.off -= len(s.frags[s.frag])
		s.frag++
	}
}

// dissect finds the headers in the first have bytes of a frame of total bytes.
func (s *Segmenter) dissect(have, total int, kind uint8) error {
	const ethLen, tagLen = 14, 4
	h := s.hdr[:have]
	s.l3 = ethLen
	if len(h) < ethLen+tagLen {
		return ErrGSOHeader
	}
	etherType := binary.BigEndian.Uint16(h[12:])
	if etherType == 0x8100 {
		etherType = binary.BigEndian.Uint16(h[16:])
		s.l3 += tagLen
	}
	ip := h[s.l3:]
	var err error
	s.udp = kind == gsoUDPL4 // ECN is TCP's
	switch v4, v6 := kind&^gsoECN == gsoTCPv4 || s.udp, kind&^gsoECN == gsoTCPv6 || s.udp; {
	case v4 && etherType == 0x0800:
		err = s.dissect4(ip, total-s.l3)
	case v6 && etherType == 0x86dd:
		s.ipv6 = true
		err = s.dissect6(ip, total-s.l3)
	default:
		return ErrGSOType
	}
	if err != nil {
		return err
	}
	if s.udp {
		return s.dissectUDP(h, total)
	}
	if len(h) < s.l4+20 {
		return ErrGSOHeader
	}
	tcp := h[s.l4:]
	doff := int(tcp[12]>>4) * 4
	if doff < 20 || len(tcp) < doff {
		return ErrGSOHeader
	}
	s.hdrLen = s.l4 + doff
	s.seq = binary.BigEndian.Uint32(tcp[4:])
	s.flags = tcp[13]
	return nil
}

func (s *Segmenter) dissect4(ip []byte, total int) error {
	if len(ip) < 20 {
		return ErrGSOHeader
	}
	ihl := int(ip[0]&15) * 4
	switch length := int(binary.BigEndian.Uint16(ip[2:])); {
	case ip[0]>>4 != 4 || ihl < 20 || len(ip) < ihl:
		return ErrGSOHeader
	case ip[9] != s.proto():
		return ErrGSOType
	case binary.BigEndian.Uint16(ip[6:])&0x3fff != 0: // a fragment
		return ErrGSOHeader
	case length != total && length != 0 || total > MaxIPLength:
		return ErrGSOLength
	}
	s.l4 = s.l3 + ihl
	s.id = binary.BigEndian.Uint16(ip[4:])
	s.pseudo = checksum.Pseudo4(ip[12:16], ip[16:20], s.proto(), 0)
	return nil
}

func (s *Segmenter) dissect6(ip []byte, total int) error {
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return ErrGSOHeader
	}
	if length := int(binary.BigEndian.Uint16(ip[4:])); length != total-40 && length != 0 || total-40 > MaxIPLength {
		return ErrGSOLength
	}
	next, off := ip[6], 40
	for range 8 {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
		default:
			if next != s.proto() {
				return ErrGSOType
			}
			s.l4 = s.l3 + off
			s.pseudo = checksum.Pseudo6(ip[8:24], ip[24:40], s.proto(), 0)
			return nil
		}
		if len(ip) < off+8 {
			return ErrGSOHeader
		}
		next, off = ip[off], off+(int(ip[off+1])+1)*8
		if len(ip) < off {
			return ErrGSOHeader
		}
	}
	return ErrGSOHeader
}

// Count is the number of packets the frame of the last Init becomes.
func (s *Segmenter) Count() int {
	if s.size == 0 || s.hdrLen == 0 {
		return 0
	}
	return max(1, (s.total+s.size-1)/s.size)
}

// HeaderLen is the length of the headers that every packet gets, from Ethernet to TCP.
func (s *Segmenter) HeaderLen() int { return s.hdrLen }

// Offsets are where the IP and the TCP header begin.
func (s *Segmenter) Offsets() (l3, l4 int) { return s.l3, s.l4 }

// PartialChecksum is what stands in the TCP checksum of a frame that is to be cut: the sum of the pseudo header over all of it, which
// whoever cuts goes on with.
func (s *Segmenter) PartialChecksum() uint16 {
	return checksum.Fold(uint64(s.pseudo + uint32(s.hdrLen-s.l4+s.total)))
}

// Next writes the next packet into dst and returns its length. ok is false when there is none left. After ErrShort the same
// packet can be asked for again.
func (s *Segmenter) Next(dst []byte) (n int, ok bool, err error) {
	if s.next >= s.Count() || s.frags == nil {
		return 0, false, nil
	}
	size := min(s.size, s.left)
	n = s.hdrLen + size
	if len(dst) < n {
		return 0, false, ErrShort
	}
	dst = dst[:n]
	copy(dst, s.hdr[:s.hdrLen])
	for at := s.hdrLen; at < n; {
		m := copy(dst[at:], s.frags[s.frag][s.off:])
		at += m
		s.off += m
		s.settle()
	}
	s.left -= size
	s.finish(dst)
	s.next++
	s.seq += uint32(size)
	if !s.fixed {
		s.id++
	}
	return n, true, nil
}

// proto is the protocol that the frame has to be of.
func (s *Segmenter) proto() uint8 {
	if s.udp {
		return 17
	}
	return 6
}

// dissectUDP is dissect behind IP. The length must be the frame's, or 0 as the IP length may be.
func (s *Segmenter) dissectUDP(h []byte, total int) error {
	if len(h) < s.l4+8 {
		return ErrGSOHeader
	}
	if length := int(binary.BigEndian.Uint16(h[s.l4+4:])); length != total-s.l4 && length != 0 {
		return ErrGSOLength
	}
	s.hdrLen = s.l4 + 8
	return nil
}

// finishUDP is finish behind IP. A sum of 0 is written as 0xffff, as 0 says that there is none (RFC 768).
func (s *Segmenter) finishUDP(udp []byte) {
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	udp[6], udp[7] = 0, 0
	sum := ^checksum.Sum(udp, s.pseudo+uint32(len(udp)))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
}

// finish writes the headers of the packet in dst.
func (s *Segmenter) finish(dst []byte) {
	ip, tcp := dst[s.l3:s.l4], dst[s.l4:]
	if s.ipv6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(dst)-s.l3-40))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(dst)-s.l3))
		binary.BigEndian.PutUint16(ip[4:], s.id)
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip, 0))
	}
	if s.udp {
		s.finishUDP(tcp)
		return
	}
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	flags := s.flags
	if s.next > 0 {
		flags &^= packet.CWR
	}
	if s.left > 0 {
		flags &^= packet.FIN | packet.PSH
	}
	tcp[13] = flags
	tcp[16], tcp[17] = 0, 0
	binary.BigEndian.PutUint16(tcp[16:], ^checksum.Sum(tcp, s.pseudo+uint32(len(tcp))))
}
