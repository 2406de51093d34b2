package flowtable

import (
	"encoding/binary"
	"math/bits"

	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// Lengths of the headers that the short way knows: Ethernet without a tag, IPv4, TCP with timestamps or without options.
const (
	followL4    = 14 + 20
	followPlain = followL4 + 20
	followTimes = followPlain + 12
)

// followType is what bytes 12 to 14 of a frame are for Follow, the type of IPv4 and the length of its header, in the word of bytes 8 to 15, of
// which word 1 has the others.
const followType = 0x0008<<32 | 0x45<<48

// Bits of TCP's word, see words, where flags other than PSH are as they are in the middle of a train: ACK alone.
const (
	followFlags = (0xff - packet.PSH) << 40
	followACK   = packet.ACK << 40
	followPSH   = packet.PSH << 40
)

// of sums up the headers of a train's first packet, of whose options the words have enough for Follow. Without its length the pseudo header has the
// IP header's, less the 20 bytes of that, which as ones' complement are added.
func (f *fixedSums) of(s *slot, first []byte) {
	addr := s.addr&0xffffffff + s.addr>>32
	f.ip = checksum.Fold(addr + s.w[2]&0xffffffff + uint64(binary.LittleEndian.Uint16(first)))
	f.pseudo = checksum.Fold(addr + 6<<8 + 0xffff - 20<<8)
	sum, carry := bits.Add64(s.w[3], s.w[4], 0)
	sum, carry = bits.Add64(sum, s.w[5], carry)
	sum, carry = bits.Add64(sum, s.meta>>metaTCP+s.w[2]>>32, carry)
	f.tcp = checksum.Fold(sum + carry)
}

// Tick tells the table the time, as every other call that has one does. It is the time at which Follow takes packets.
func (t *Table) Tick(now int64) { t.tick(now) }

// Follow lets a packet join its flow's superframe if it is what nearly all packets are: the next segment of a train of the profile gro, TCP in IPv4
// without a tag, with timestamps or without options. The caller knows that it is sound TCP in IPv4, in one fragment, without a tag, IP options or anything that is
// to be said in Packet beside that, and with flags ACK and perhaps PSH.
//
// It has no rule of its own: it asks for all that Add asks for, in one pass over headers whose offsets are constants, and where anything is not as it
// is in the middle of a train it says false and has changed nothing. Then Add is to be asked, and does what it would have done.
func (t *Table) Follow(port uint32, frame []byte, ref uint64) bool {
	if uint64(port) >= uint64(len(t.ports)) || t.held >= t.maxHeld || len(frame) <= followTimes {
		return false
	}
	pt := &t.ports[port]
	if !pt.plain4 {
		return false
	}
	// As find does, for whom the flow is that came behind the last packet's the time before: often packets come in the same order again.
	le := binary.LittleEndian
	h := (*[followTimes]byte)(frame)
	addr, ports := le.Uint64(h[26:]), le.Uint64(h[followL4:])
	meta := ports<<metaTCP | uint64(port)<<metaPort
	before := &t.slots[t.last]
	n := before.then
	s := &t.slots[n]
	if s.addr != addr || s.meta != meta || s.state != slotOpen {
		n = t.buckets[t.bucketOf(addr, meta)]
		for n != 0 && (t.slots[n].addr != addr || t.slots[n].meta != meta) {
			n = t.slots[n].hashNext
		}
		if n == 0 {
			return false
		}
		before.then = n
		s = &t.slots[n]
	}
	if t.now > t.due && pt.hold != 0 && t.now > s.born+pt.holdOf(s) {
		return false
	}
	// As sound and fits do, with what readWords would read. Each field is taken out of a word that is loaded once, and what is equal in nearly every
	// packet is asked for at once: this is what a segment costs. The first packet was sound, so where the offset of the data is equal it is right.
	first, tcp, check := le.Uint64(h[16:]), le.Uint64(h[followL4+8:]), le.Uint32(h[followL4+16:])
	w := &s.w
	differs := le.Uint64(h[:]) ^ w[0]
	differs |= le.Uint64(h[8:]) ^ followType ^ w[1]
	differs |= (first>>32 | uint64(check>>16)<<32) ^ w[2]
	differs |= tcp&^ended ^ w[3]
	differs |= tcp&followFlags ^ followACK
	differs |= ports>>32 ^ uint64(bits.ReverseBytes32(s.nxt))
	differs |= uint64(bits.ReverseBytes16(uint16(first))) + 14 ^ uint64(len(frame))
	var data []byte
	switch tcp & maskDoff {
	case (followTimes - followL4) / 4 << 36:
		differs |= le.Uint64(h[followPlain:]) ^ w[4]
		differs |= uint64(le.Uint32(h[followPlain+8:])) ^ w[5]
		data = frame[followTimes:len(frame):len(frame)]
	case (followPlain - followL4) / 4 << 36:
		data = frame[followPlain:len(frame):len(frame)]
	default:
		return false
	}
	length := uint32(len(data))
	id := bits.ReverseBytes16(uint16(first >> 16))
	if differs != 0 || length > uint32(s.gso) || s.ipLen+length > pt.maxIP[0] || !followsID(pt, s, id, w.df()) {
		return false
	}
	// As verify and fitsLate do, with what the train's packets have in common summed up once.
	sum := uint16(0)
	if !pt.noVerify {
		ip, field, total := uint32(le.Uint16(h[24:])), check&0xffff, uint32(first&0xffff)
		pseudo := uint32(s.fixed.pseudo) + total
		if checksum.Fold32(uint32(s.fixed.ip)+total+uint32(first>>16&0xffff)+ip) != 0xffff || ip == 0xffff ||
			field == 0xffff || field == uint32(checksum.Fold32(pseudo)) {
			return false
		}
		seq := uint32(ports >> 32)
		sum = bits.ReverseBytes16(checksum.Fold32(pseudo + uint32(s.fixed.tcp) + seq>>16 + seq&0xffff + uint32(tcp&followPSH>>32) + field))
		if !pt.late || s.trust != late {
			if checksum.Sum(data, uint32(sum)) != 0xffff {
				return false
			}
			sum = 0
		}
	}
	// As Add, append and grow do.
	pt.ledger.In++
	pt.ledger.InBytes += uint64(len(frame))
	pt.ledger.Held++
	t.held++
	t.last = n
	t.blocks.add(s, data, lateRef(ref, sum))
	s.ipLen += length
	s.segs++
	pt.came(s, t.now)
	s.nextID(id)
	r := advance(s, uint8(tcp>>40), length)
	if r == open && uint32(s.segs) >= pt.maxSeg {
		r = ReasonMaxSegments
	}
	if r != open {
		t.shutSlot(pt, n, r)
	}
	return true
}

// follow is Follow for a packet of which the caller of Add may say more, and for IPv6.
func (t *Table) follow(pt *port, p *Packet) bool {
	in := &p.Info
	if p.GSOInput || p.CsumStart != 0 || len(p.Tail) > 0 || in.Verdict != packet.OK || in.Tagged || in.TCI != 0 || !in.Keyed ||
		in.TCPFlags&^packet.PSH != packet.ACK || in.L3 != followL4-20 {
		return false
	}
	if in.Family == 6 {
		return t.follow6(pt, p)
	}
	return in.Family == 4 && in.L4 == followL4 && !p.Asked && t.Follow(p.Port, p.Data, p.Ref)
}

// follow6 is follow for IPv6, with what the rules are made of.
func (t *Table) follow6(pt *port, p *Packet) bool {
	const l4 = 14 + 40
	in := &p.Info
	end := in.Payload + in.PayloadLen
	rules, gro := pt.rules.(*groRules)
	if !gro || len(pt.exclude) > 0 || pt.gate[1] != open || t.held >= t.maxHeld || in.PayloadLen-1 >= MaxIPLength || uint64(end) > uint64(len(p.Data)) ||
		in.L4 != l4 || in.Payload != l4+32 && in.Payload != l4+20 {
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
	pt.ledger.In++
	pt.ledger.InBytes += uint64(len(p.Data))
	t.append(pt, n, s, p, rules, sum)
	return true
}
