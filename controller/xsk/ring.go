package xsk

import "sync/atomic"

// index is one ring's shared words as this side sees them: the ring's two indices, its flags and its size. Indices run freely
// through 32 bits; an entry's place is index & mask. Each index has one writer. Go's atomic stores and loads order at
// least as the release and acquire that the ring needs (Documentation/networking/af_xdp.rst, tools/lib/bpf's xsk.h).
type index struct {
	producer *uint32
	consumer *uint32
	flags    *uint32
	mask     uint32
	size     uint32
	cachedP  uint32 // what this side knows of producer
	cachedC  uint32 // what this side knows of consumer
}

const needWakeup = 1 << 0 // XDP_RING_NEED_WAKEUP in flags

// room returns how many entries can be produced, at least want if there is that much room. The consumer's line is read only
// when what is known does not do.
func (x *index) room(want uint32) uint32 {
	if free := x.size - (x.cachedP - x.cachedC); free >= want {
		return free
	}
	x.cachedC = atomic.LoadUint32(x.consumer) // acquire: entries below it are free to write
	return x.size - (x.cachedP - x.cachedC)
}

// publish makes the entries produced up to cachedP visible.
func (x *index) publish() { atomic.StoreUint32(x.producer, x.cachedP) } // release

// published reports whether this side has published the entry that it put at i. What it has not is at most a ring's size
// ahead; an entry put nearly 2^32 others ago would look like that, but nobody keeps one while that many pass by.
func (x *index) published(i uint32) bool { return i-x.cachedP >= x.size }

// consumed reports whether the other side has consumed all that was produced, and said so.
func (x *index) consumed() bool { return atomic.LoadUint32(x.consumer) == x.cachedP }

// ready returns how many entries can be consumed, at least want if that many are there.
func (x *index) ready(want uint32) uint32 {
	if n := x.cachedP - x.cachedC; n >= want {
		return n
	}
	x.cachedP = atomic.LoadUint32(x.producer) // acquire: entries below it are filled
	return x.cachedP - x.cachedC
}

// release gives the entries consumed up to cachedC back.
func (x *index) release() { atomic.StoreUint32(x.consumer, x.cachedC) }

// emptyIndex is that of a closed socket: nothing to consume and no room.
func emptyIndex() index {
	return index{producer: new(uint32), consumer: new(uint32), flags: new(uint32)}
}

// reread looks at both words again, which others have moved.
func (x *index) reread() {
	x.cachedP, x.cachedC = atomic.LoadUint32(x.producer), atomic.LoadUint32(x.consumer)
}

// rings are the four of a socket.
type rings struct {
	rx, tx     descRing
	fill, comp addrRing
}

// noRings are those of a closed socket.
func noRings() rings {
	return rings{rx: descRing{index: emptyIndex()}, tx: descRing{index: emptyIndex()}, fill: addrRing{index: emptyIndex()}, comp: addrRing{index: emptyIndex()}}
}

func (r *rings) reread() {
	for _, x := range []*index{&r.rx.index, &r.tx.index, &r.fill.index, &r.comp.index} {
		x.reread()
	}
}

func (x *index) needsWakeup() bool { return atomic.LoadUint32(x.flags)&needWakeup != 0 }

// addrRing is a fill or completion ring: its entries are chunk addresses.
type addrRing struct {
	index
	entries []uint64
}

// descRing is an RX or TX ring.
type descRing struct {
	index
	entries []ringDesc
}

// ringDesc is struct xdp_desc (include/uapi/linux/if_xdp.h).
type ringDesc struct {
	addr    uint64
	length  uint32
	options uint32
}

// read takes up to len(to) addresses. Their entries are the kernel's again with release.
func (r *addrRing) read(to []uint64) int {
	n := int(min(r.ready(uint32(len(to))), uint32(len(to))))
	for i := range n {
		to[i] = r.entries[r.cachedC&r.mask]
		r.cachedC++
	}
	return n
}

// read takes up to len(to) descriptors. Their entries are the kernel's again with release.
func (r *descRing) read(to []Desc) int {
	n := int(min(r.ready(uint32(len(to))), uint32(len(to))))
	for i := range n {
		e := &r.entries[r.cachedC&r.mask]
		to[i] = Desc{Addr: e.addr, Len: e.length}
		r.cachedC++
	}
	return n
}

// put writes one descriptor without publishing it; the caller has asked room.
func (r *descRing) put(d Desc) {
	r.entries[r.cachedP&r.mask] = ringDesc{addr: d.Addr, length: d.Len}
	r.cachedP++
}
