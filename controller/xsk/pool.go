package xsk

import "encoding/binary"

// umem is the shared memory, its chunks, and the pool of those that are on this side and unused.
type umem struct {
	mem   []byte
	shift uint     // chunk size as a power of two
	free  []uint64 // addresses of chunk starts, a stack; never grows beyond its capacity
	owner owners   // by chunk
	end   uint64   // of the chunks
	large buffers  // behind them
}

// newUmem has all chunks in the pool that are so by o, and behind them as many buffers of frameSize bytes as there are, all free: of
// those the kernel knows nothing, so after a crash nobody has one.
func newUmem(mem []byte, chunkSize, frameSize int, o owners) *umem {
	u := &umem{mem: mem, owner: o, end: uint64(len(o) * chunkSize)}
	u.large.init(u.end, len(mem), frameSize)
	for 1<<u.shift < chunkSize {
		u.shift++
	}
	u.free = make([]uint64, 0, len(o))
	for i := len(o) - 1; i >= 0; i-- { // the first chunk on top
		if o[i] == inPool {
			u.free = append(u.free, uint64(i)<<u.shift)
		}
	}
	return u
}

func (u *umem) chunkSize() int { return 1 << u.shift }

// top removes the chunk used last from the pool. The caller notes who has it.
func (u *umem) top() (addr uint64, ok bool) {
	if len(u.free) == 0 {
		return 0, false
	}
	addr = u.free[len(u.free)-1]
	u.free = u.free[:len(u.free)-1]
	return addr, true
}

// take is top for the caller.
func (u *umem) take() (addr uint64, ok bool) {
	if addr, ok = u.top(); ok {
		u.owner[addr>>u.shift] = inHand
	}
	return addr, ok
}

// lend notes that the chunk that addr lies in goes to the kernel with the entry at index of a ring: inFill or inTX. It comes
// before the entry.
func (u *umem) lend(addr uint64, ring uint64, index uint32) {
	u.owner[addr>>u.shift] = ring | uint64(index)
}

// received notes that the chunk that addr lies in came with a frame, and reports whether the kernel had it for that: taken all the same it
// would be in two hands. It comes before the entry that brought it is released.
func (u *umem) received(addr uint64) bool {
	i := addr >> u.shift
	if i >= uint64(len(u.owner)) || u.owner[i]&^indexBits != inFill {
		return false
	}
	u.owner[i] = inHand
	return true
}

// back notes that the chunk that addr lies in was sent. It comes before the entry that brought it is released.
func (u *umem) back(addr uint64) {
	if i := addr >> u.shift; i < uint64(len(u.owner)) {
		u.owner[i] = inHand
	}
}

// give puts the chunk that addr lies in into the pool. An address outside the UMEM and a chunk that is not in the caller's hand
// are ignored: a chunk in two hands would mix two guests' frames.
func (u *umem) give(addr uint64) {
	if u.large.has(addr) {
		u.large.give(addr)
		return
	}
	i := addr >> u.shift
	if i >= uint64(len(u.owner)) || u.owner[i] != inHand {
		return
	}
	u.owner[i] = inPool
	u.free = append(u.free, i<<u.shift)
}

// frame returns the n bytes at addr, nil when they do not lie in one chunk, or one buffer.
func (u *umem) frame(d Desc) []byte {
	end := d.Addr + uint64(d.Len)
	if u.large.has(d.Addr) {
		if !u.large.holds(d) {
			return nil
		}
		return u.mem[d.Addr:end:end]
	}
	if d.Len == 0 || end < d.Addr || end > u.end || d.Addr>>u.shift != (end-1)>>u.shift {
		return nil
	}
	return u.mem[d.Addr:end:end]
}

// meta returns the MetaSize bytes before d, nil when they would not lie in d's chunk, or buffer.
func (u *umem) meta(d Desc) []byte {
	if u.large.has(d.Addr) {
		if u.large.offset(d.Addr) < MetaSize {
			return nil
		}
	} else if d.Addr >= u.end || d.Addr&(1<<u.shift-1) < MetaSize {
		return nil
	}
	return u.mem[d.Addr-MetaSize : d.Addr : d.Addr]
}

// clearMeta makes what a program left in front of a frame unreadable as metadata: a driver without room for metadata would
// leave it in front of the chunk's next frame, and another frame's description would be believed. The metadata begins with
// a magic word, and without it there is none.
func (u *umem) clearMeta(d Desc) {
	if m := u.meta(d); m != nil {
		binary.NativeEndian.PutUint32(m, 0)
	}
}
