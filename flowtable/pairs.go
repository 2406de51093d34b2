package flowtable

import "math/bits"

// pairs lists the open slots by their pair of addresses, for packets that belong to a flow between two addresses but do not say
// to which: fragments behind the first, TCP behind too many extension headers.
//
// Such packets are rare, and keeping the lists costs a few cache lines for every superframe. So the lists are kept only for a
// while after such a packet. The first one makes them from all open slots, which no sender can cause more often than once in
// that while.
type pairs struct {
	kept  bool
	until int64      // ns: no longer kept from here on
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

// keepPairs is how long, in ns, the lists are kept behind the last packet that needed them.
const keepPairs = 10_000_000

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

// listPair lists a slot that has just been opened, while the lists are kept.
func (t *Table) listPair(n uint32, k *key) {
	if t.now >= t.pairs.until {
		t.pairs.kept = false
		return
	}
	t.pairs.add(n, k.pair(&t.seed))
}

// last is the oldest slot of a list, 0 if it is empty.
func (p *pairs) last(hash uint64) uint32 {
	n := p.heads[hash>>p.shift]
	for n != 0 && p.links[n].next != 0 {
		n = p.links[n].next
	}
	return n
}

// needPairs makes sure that the lists are kept, and are from here on.
func (t *Table) needPairs() {
	p := &t.pairs
	p.until = t.now + keepPairs
	if p.kept {
		return
	}
	p.kept = true
	clear(p.heads)
	for _, i := range t.active {
		for n := t.ports[i].oldest; n != 0; n = t.slots[n].ageNext {
			s := &t.slots[n]
			if s.state != slotOpen {
				continue
			}
			k := key{addr: s.addr, meta: s.meta, rest: t.origins[n].rest}
			t.fold(&k)
			p.add(n, k.pair(&t.seed))
		}
	}
}

// sealPair closes every flow between the addresses of a packet whose ports are out of reach: any of them may be its own. Oldest
// first. It looks at few flows of other addresses, and each that it closes was opened by a packet.
func (t *Table) sealPair(pt *port, p *Packet, r Reason) {
	if pt.oldest == 0 {
		return
	}
	t.needPairs()
	in := p.Info
	in.L4 = in.L3 // bytes that are there, for ports that are taken out again
	var k key
	readKey(p.Data, &in, p.Port, &k)
	k.meta &= metaPair
	t.fold(&k)
	for n := t.pairs.last(k.pair(&t.seed)); n != 0; {
		newer := t.pairs.links[n].prev
		s := &t.slots[n]
		if s.addr == k.addr && s.meta&metaPair == k.meta && (k.meta&metaIPv6 == 0 || t.origins[n].rest == k.rest) {
			t.shutSlot(pt, n, r)
		}
		n = newer
	}
}
