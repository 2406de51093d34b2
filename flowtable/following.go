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

// Follow lets a packet join its flow's superframe if it is what nearly all packets are: the next segment of a train of the profile gro, TCP in IPv4
// without a tag, with timestamps or without options. The caller knows that it is sound TCP in IPv4, in one fragment, without a tag, IP options or anything that is
// to be said in Packet beside that, with payload bytes of headers, length bytes behind them, and flags ACK and perhaps PSH.
//
// It has no rule of its own: it asks for all that Add asks for, in one pass over headers whose offsets are constants, and where anything is not as it
// is in the middle of a train it says false and has changed nothing. Then Add is to be asked, and does what it would have done.
func (t *Table) Follow(port uint32, frame []byte, ref uint64, payload, length uint32, now int64) bool {
	t.tick(now)
	end := payload + length
	if uint64(port) >= uint64(len(t.ports)) || t.held >= t.maxHeld || length-1 >= MaxIPLength || uint64(end) > uint64(len(frame)) {
		return false
	}
	pt := &t.ports[port]
	if !pt.plain4 {
		return false
	}
	le := binary.LittleEndian
	var options, rest uint64 // as in words
	switch payload {
	case followTimes:
		h := (*[followTimes]byte)(frame)
		options, rest = le.Uint64(h[followPlain:]), uint64(le.Uint32(h[followPlain+8:]))
	case followPlain:
	default:
		return false
	}
	// Each field is taken out of a word that is loaded once: this is what a segment costs.
	h := (*[followPlain]byte)(frame)
	first, last := le.Uint64(h[14:]), uint64(le.Uint32(h[22:])) // of IP, without its addresses
	addr, ports, tcp, check := le.Uint64(h[26:]), le.Uint64(h[followL4:]), le.Uint64(h[followL4+8:]), uint64(le.Uint32(h[followL4+16:]))
	flags := uint8(tcp >> 40)
	if uint32(bits.ReverseBytes16(uint16(first>>16)))+14 != end || uint32(tcp>>34)&60 != payload-followL4 || flags&^packet.PSH != packet.ACK { // as in sound
		return false
	}
	// As find does.
	meta := ports<<metaTCP | uint64(port)<<metaPort
	n := t.buckets[mix(addr^t.seed[0], meta^t.seed[1])>>(t.shift&63)]
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
	w := &s.w
	df := uint64(bits.ReverseBytes16(uint16(first >> 48)))
	id := bits.ReverseBytes16(uint16(first >> 32))
	differs := le.Uint64(h[:]) ^ w[0]
	differs |= (uint64(le.Uint32(h[8:])) | first>>8&0xff<<48 | last<<56) ^ w[1]
	differs |= (df | check>>16<<32) ^ w[2]
	differs |= tcp&^ended ^ w[3]
	differs |= options ^ w[4]
	differs |= rest ^ w[5]
	if differs != 0 || bits.ReverseBytes32(uint32(ports>>32)) != s.nxt || length > uint32(s.gso) || s.ipLen+length > pt.maxIP[0] ||
		!followsID(pt, s, id, df&0x4000 != 0) {
		return false
	}
	// As verify and fitsLate do. The sum of words whose bytes are swapped is the sum with its bytes swapped.
	sum := uint16(0)
	if !pt.noVerify {
		ip, carry := bits.Add64(first, addr, 0)
		ip, carry = bits.Add64(ip, last, carry)
		pseudo, over := bits.Add64(addr, 6<<8+uint64(bits.ReverseBytes16(uint16(end-followL4))), 0)
		pseudo += over
		field := uint16(check)
		if checksum.Fold(ip+carry) != 0xffff || last>>16 == 0xffff || field == 0xffff || field == checksum.Fold(pseudo) {
			return false
		}
		all, over := bits.Add64(pseudo, ports, 0)
		all, over = bits.Add64(all, tcp, over)
		all, over = bits.Add64(all, options, over)
		all, over = bits.Add64(all, check+rest, over)
		sum = bits.ReverseBytes16(checksum.Fold(all + over))
		if !pt.late || s.trust != late {
			if checksum.Sum(frame[payload:end], uint32(sum)) != 0xffff {
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
	t.blocks.add(s, frame[payload:end:len(frame)], lateRef(ref, sum))
	s.ipLen += length
	s.segs++
	pt.came(s, t.now)
	s.nextID(id)
	r := advance(s, flags, length)
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
	return in.Family == 4 && in.L4 == followL4 && t.Follow(p.Port, p.Data, p.Ref, in.Payload, in.PayloadLen, t.now)
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
