package flowtable

import "math"

// State of a slot.
const (
	slotFree    = iota
	slotOpen    // in the hash: more may be appended
	slotWaiting // hold 0: closed, or passed alone, but something older of its port is still here
)

// How the IPv4 ID of a train behaves; the second packet decides.
const (
	idUnknown = iota
	idCounts
	idFixed
)

// slot is one open superframe, or, with hold 0, a frame that waits for its turn. It is what a look-up and an append touch: two
// cache lines, side by side. Links are indexes into Table.slots; slot 0 is not used and ends every list.
type slot struct {
	// Line 0: whose it is and what must be equal.
	addr uint64
	meta uint64
	w    words

	// Line 1: what grows.
	born       int64
	nxt        uint32 // sequence number that is due
	ipLen      uint32 // of the superframe
	segs       uint16 // with data
	gso        uint16 // payload of the first (gro) or largest (rsc) segment
	id         uint16 // IPv4 ID of the last packet
	fixed      fixedSums
	idMode     uint8
	state      uint8
	flags      uint8 // PSH and FIN seen
	reason     Reason
	trust      trust
	fill       uint8  // fragments in lastBlock
	level      uint8  // of its hold, with levelLate
	extra      uint32 // fragments behind the first packet's first
	firstBlock uint32
	lastBlock  uint32
	hashNext   uint32
	agePrev    uint32 // of the same port
	ageNext    uint32
	then       uint32 // the slot whose packet came behind the last one of this: a guess at the next
}

// fixedSums are, for IPv4 and the profile gro, the sums of what all packets of a train have in common: of their IPv4 headers without length, ID and
// checksum, of their pseudo headers without a length, and of their TCP headers and 16 bytes of options without sequence number, PSH, FIN and checksum. They
// are sums of words as they lie, with the lower byte first.
type fixedSums struct{ ip, pseudo, tcp uint16 }

// trust is what is known of the checksums of a slot's packets.
type trust uint8

const (
	noTrust  trust = iota // a wrong one, or not looked at
	verified              // they are right
	late                  // right if the payloads are: the head's Ref and those in blocks have the sums that are left to be checked
)

// trustIn is the trust in a slot of one packet.
func trustIn(good bool, sum uint16) trust {
	switch {
	case sum != 0:
		return late
	case good:
		return verified
	}
	return noTrust
}

// Where Refs are below MaxLateRef, a sum lies above them: it costs no room, and no cache line of its own.
const (
	lateShift = 48
	lateRefs  = 1<<lateShift - 1
)

func lateRef(ref uint64, sum uint16) uint64 { return ref | uint64(sum)<<lateShift }

// origin is the rest of a slot, under the same index in Table.origins: what is needed to open and to close it, one cache line.
type origin struct {
	rest    [3]uint64 // IPv6: of the key
	head    []byte
	ref     uint64
	l3      uint8
	l4      uint8
	payload uint8
	plain   uint8 // passed alone: 1 + data segments; 0: was a head
	tcp     bool
	tail    uint8  // fragments of the first packet behind head that are not empty
	updates uint16 // window updates absorbed
}

const maxUpdates = math.MaxUint16

// blockLen fragments behind the first share a block, so that closing a slot walks few links. A block is no power of two long:
// the newest entries of many flows that grow in step would all fall into the same few sets of the caches.
const blockLen = 15

// blocks holds what every slot has behind its first packet's first fragment, in lists of blocks. Two fragments share a cache
// line. Data is nil where there is only memory to be given back: of a window update, of padding.
type blocks struct {
	list []Fragment // of all blocks, one behind the other
	next []uint32   // block 0 is not used
	free uint32
}

func newBlocks(n int) blocks {
	b := blocks{list: make([]Fragment, (n+1)*blockLen), next: make([]uint32, n+1)}
	for i := n; i > 0; i-- {
		b.next[i], b.free = b.free, uint32(i)
	}
	return b
}

// of returns the fragments that stand in a block, of which it may have n.
func (b *blocks) of(block, n uint32) []Fragment { return b.list[block*blockLen:][:min(n, blockLen)] }

// add appends a fragment to a slot. There is always a block: see New.
func (b *blocks) add(s *slot, frag []byte, ref uint64) {
	if s.extra == 0 || s.fill == blockLen {
		n := b.free
		b.free = b.next[n]
		b.next[n] = 0
		if s.extra == 0 {
			s.firstBlock = n
		} else {
			b.next[s.lastBlock] = n
		}
		s.lastBlock, s.fill = n, 0
	}
	e := &b.list[s.lastBlock*blockLen+uint32(s.fill)]
	e.Data, e.Ref = frag, ref
	s.fill++
	s.extra++
}

// release gives a slot's blocks back.
func (b *blocks) release(s *slot) {
	if s.extra > 0 {
		b.next[s.lastBlock] = b.free
		b.free = s.firstBlock
	}
}

// BytesPerSlot is what one slot costs: itself, a block that may be partly filled, its places among its pair's and its level's, at most
// eight hash buckets with a flow's habit each, and two heads of pairs. A chunk held costs BytesPerChunk more: its entry and its places in the scratch lists.
const (
	BytesPerSlot  = 128 + 64 + blockLen*fragmentBytes + 4 + 12 + 12 + 8*(4+24) + 2*4
	BytesPerChunk = fragmentBytes + 1 + 24 + 8 + 2

	fragmentBytes = 24 + 8
)
