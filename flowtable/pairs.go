package flowtable

import "math/bits"

// pairs lists the open slots by their pair of addresses, for packets that belong to a flow between two addresses but do not say
// to which: fragments behind the first, TCP behind too many extension headers. A list is touched when a slot opens and closes,
// not per packet.
type pairs struct {
	links []pairLink // by slot
	heads []uint32   // newest slots, by hash
	shift uint8
}

// pairLink is a slot's place in its list, newest first; 0 ends it.
type pairLink struct {
	next uint32 // the next older
	prev uint32 // the next newer
	head uint32 // index in heads
}

func newPairs(slots int) pairs {
	order := bits.Len(uint(slots)) // at least one head per slot: lists hold few pairs
	return pairs{links: make([]pairLink, slots+1), heads: make([]uint32, 1<<order), shift: uint8(64 - order)}
}

func (p *pairs) add(n uint32, hash uint64) {
	h := uint32(hash >> p.shift)
	old := p.heads[h]
	p.links[n] = pairLink{next: old, head: h}
	p.links[old].prev = n // of link 0 nothing is read
	p.heads[h] = n
}

func (p *pairs) remove(n uint32) {
	l := &p.links[n]
	p.links[l.next].prev = l.prev
	if l.prev != 0 {
		p.links[l.prev].next = l.next
	} else {
		p.heads[l.head] = l.next
	}
}

// last is the oldest slot of a list, 0 if it is empty.
func (p *pairs) last(hash uint64) uint32 {
	n := p.heads[hash>>p.shift]
	for n != 0 && p.links[n].next != 0 {
		n = p.links[n].next
	}
	return n
}
