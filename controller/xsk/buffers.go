package xsk

// buffers hold frames that no chunk holds. They lie behind the chunks in the same memory, so an address tells which of the two it is in,
// and what is shared with somebody is shared with all of both. The kernel does not know of them: whoever has one is this process, and of
// a process that has died nobody has one.
type buffers struct {
	base, span uint64 // where they begin, and all their bytes
	size       uint64 // of one; 0: there are none
	free       []uint32
	out        []bool // by number: it is in the caller's hand
}

// init has all of them free.
func (b *buffers) init(base uint64, end, size int) {
	if size == 0 {
		return
	}
	n := (end - int(base)) / size
	*b = buffers{base: base, span: uint64(n * size), size: uint64(size), free: make([]uint32, 0, n), out: make([]bool, n)}
	for i := n - 1; i >= 0; i-- { // the first one on top
		b.free = append(b.free, uint32(i))
	}
}

// has reports whether an address lies in one of them.
func (b *buffers) has(addr uint64) bool { return addr-b.base < b.span }

// offset is how far behind its buffer's beginning an address is.
func (b *buffers) offset(addr uint64) uint64 { return (addr - b.base) % b.size }

// holds reports whether all of a frame, which begins in a buffer, lies in it.
func (b *buffers) holds(d Desc) bool {
	return d.Len > 0 && b.offset(d.Addr)+uint64(d.Len) <= b.size
}

// take takes one, the last one used: its lines may still be in the cache. The Desc is of all that a frame may fill.
func (b *buffers) take() (d Desc, ok bool) {
	if len(b.free) == 0 {
		return Desc{}, false
	}
	i := b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	b.out[i] = true
	return Desc{Addr: b.base + uint64(i)*b.size + frameHead, Len: uint32(b.size - frameHead)}, true
}

// give takes the one back that addr lies in. One that is free is left so: in two hands it would mix two guests' frames.
func (b *buffers) give(addr uint64) {
	i := (addr - b.base) / b.size
	if !b.out[i] {
		return
	}
	b.out[i] = false
	b.free = append(b.free, uint32(i))
}
