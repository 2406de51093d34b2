package flowtable

import (
	"encoding/binary"
	"math/bits"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// Lengths of the headers that follow knows: Ethernet without a tag, IPv4, TCP with timestamps or without options.
const (
	followL4    = 14 + 20
	followPlain = followL4 + 20
	followTimes = followPlain + 12
)

// follow lets a packet join its flow's superframe if it is what nearly all packets are: the next segment of a train of the profile gro,
// without a tag, with timestamps or without options. It has no rule of its own: it asks for all that Add asks for, in one pass over headers whose offsets are
// constants, and where anything is not as it is in the middle of a train it says false and has changed nothing. Then Add goes its way.
func (t *Table) follow(pt *port, p *Packet) bool {
	in := &p.Info
	rules, ok := pt.rules.(*groRules)
	end := in.Payload + in.PayloadLen
	if !ok || len(pt.exclude) > 0 || t.held >= t.maxHeld || p.GSOInput || p.CsumStart != 0 || len(p.Tail) > 0 ||
		in.Verdict != packet.OK || in.Tagged || !in.Keyed || in.TCPFlags&^packet.PSH != packet.ACK || in.L3 != followL4-20 ||
		in.PayloadLen-1 >= MaxIPLength || uint64(end) > uint64(len(p.Data)) {
		return false
	}
	if in.Family == 6 {
		return t.follow6(pt, p, rules)
	}
	if pt.gate[0] != open || in.Family != 4 || in.L4 != followL4 || in.Payload != followTimes && in.Payload != followPlain {
		return false
	}
	h := (*[followPlain]byte)(p.Data)
	options := p.Data[followPlain:in.Payload]
	if uint32(binary.BigEndian.Uint16(h[16:]))+14 != end || uint32(h[followL4+12]>>4)*4 != in.Payload-followL4 || h[followL4+13] != in.TCPFlags { // as in sound
		return false
	}
	// As find does.
	addr := binary.LittleEndian.Uint64(h[26:])
	meta := uint64(binary.LittleEndian.Uint32(h[followL4:]))<<metaTCP | uint64(p.Port)<<metaPort
	n := t.buckets[mix(addr^t.seed[0], meta^t.seed[1])>>t.shift]
	for n != 0 && (t.slots[n].addr != addr || t.slots[n].meta != meta) {
		n = t.slots[n].hashNext
	}
	if n == 0 {
		return false
	}
	s := &t.slots[n]
	if pt.hold != 0 && t.now > s.born+pt.holdOf(s) {
		return false
	}
	// As fits does, with what readWords would read.
	w, le := &s.w, binary.LittleEndian
	df := uint64(binary.BigEndian.Uint16(h[20:]))
	differs := le.Uint64(h[:]) ^ w[0]
	differs |= (uint64(le.Uint32(h[8:])) | uint64(in.TCI)<<32 | uint64(h[15])<<48 | uint64(h[22])<<56) ^ w[1]
	differs |= (df | uint64(le.Uint16(h[followL4+18:]))<<32) ^ w[2]
	differs |= (le.Uint64(h[followL4+8:]) &^ ended) ^ w[3]
	if len(options) == 12 {
		differs |= le.Uint64(options) ^ w[4]
		differs |= uint64(le.Uint32(options[8:])) ^ w[5]
	}
	if differs != 0 {
		return false
	}
	if binary.BigEndian.Uint32(h[followL4+4:]) != s.nxt || in.PayloadLen > uint32(s.gso) || s.ipLen+in.PayloadLen > pt.maxIP[0] ||
		!followsID(pt, s, binary.BigEndian.Uint16(h[18:]), df&0x4000 != 0) {
		return false
	}
	// As verify and fitsLate do.
	sum := uint16(0)
	if !pt.noVerify {
		if sum, ok = lateSum(h, options, in.PayloadLen); !ok {
			return false
		}
		if !pt.late || s.trust != late {
			if checksum.Sum(p.Data[in.Payload:end], uint32(sum)) != 0xffff {
				return false
			}
			sum = 0
		}
	}
	t.append(pt, n, s, p, rules, sum)
	return true
}

// follow6 is follow for IPv6, with what the rules are made of.
func (t *Table) follow6(pt *port, p *Packet, rules *groRules) bool {
	const l4 = 14 + 40
	in := &p.Info
	end := in.Payload + in.PayloadLen
	if pt.gate[1] != open || in.L4 != l4 || in.Payload != l4+32 && in.Payload != l4+20 {
		return false
	}
	h := (*[l4 + 20]byte)(p.Data)
	if uint32(binary.BigEndian.Uint16(h[18:]))+l4 != end || uint32(h[l4+12]>>4)*4 != in.Payload-l4 || h[l4+13] != in.TCPFlags { // as in sound
		return false
	}
	in.UDP = false // as Add says
	var k key
	readKey(p.Data, in, p.Port, &k)
	_, n := t.find(&k)
	s := &t.slots[n]
	if n == 0 || pt.hold != 0 && t.now > s.born+pt.holdOf(s) {
		return false
	}
	readWords(p.Data, in, &t.w)
	if !t.w.equals(&s.w) || binary.BigEndian.Uint32(h[l4+4:]) != s.nxt || in.PayloadLen > uint32(s.gso) || s.ipLen+in.PayloadLen > pt.maxIP[0] {
		return false
	}
	why, sum := rules.verify(pt, p, pt.late)
	if why != open || sum != 0 && s.trust != late {
		return false
	}
	t.append(pt, n, s, p, rules, sum)
	return true
}

// lateSum is what verify calls late of headers, and false where verify has more to say.
func lateSum(h *[followPlain]byte, options []byte, payload uint32) (sum uint16, ok bool) {
	if ip := h[14:followL4]; !headerGood(ip) || ip[10]&ip[11] == 0xff {
		return 0, false
	}
	le := binary.LittleEndian
	// The pseudo header's words, and TCP's. The sum of words whose bytes are swapped is the sum with its bytes swapped.
	pseudo := uint64(le.Uint32(h[26:])) + uint64(le.Uint32(h[30:])) + 6<<8 + uint64(bits.ReverseBytes16(uint16(20+uint32(len(options))+payload)))
	tcp := h[followL4:]
	all := pseudo + uint64(le.Uint32(tcp)) + uint64(le.Uint32(tcp[4:])) + uint64(le.Uint32(tcp[8:])) + uint64(le.Uint32(tcp[12:])) + uint64(le.Uint32(tcp[16:]))
	if len(options) == 12 {
		all += uint64(le.Uint32(options)) + uint64(le.Uint32(options[4:])) + uint64(le.Uint32(options[8:]))
	}
	field := le.Uint16(tcp[16:])
	if field == 0xffff || field == checksum.Fold(pseudo) {
		return 0, false
	}
	return bits.ReverseBytes16(checksum.Fold(all)), true
}
