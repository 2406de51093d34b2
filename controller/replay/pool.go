package replay

// pool keeps copies of the packets that are in open slots. A reference is the index of a slot of the pool.
type pool struct {
	slots []held
	free  []uint64
	bytes int // of all buffers in use
}

type held struct {
	buf   []byte
	index uint64 // of the packet in the capture
	orig  int    // length on the wire
}

// chunk is the smallest buffer, as in the UMEM: most packets fit, so buffers are reused and not collected.
const chunk = 2048

// put copies a packet and returns its reference.
func (p *pool) put(data []byte, index uint64, orig int) uint64 {
	var ref uint64
	if n := len(p.free); n > 0 {
		ref, p.free = p.free[n-1], p.free[:n-1]
	} else {
		ref = uint64(len(p.slots))
		p.slots = append(p.slots, held{})
	}
	h := &p.slots[ref]
	if cap(h.buf) < len(data) {
		h.buf = make([]byte, max(len(data), chunk))
	}
	h.buf = h.buf[:len(data)]
	copy(h.buf, data)
	h.index, h.orig = index, orig
	p.bytes += cap(h.buf)
	return ref
}

// release gives a buffer back. Large ones are not kept: a capture of a few jumbo packets must not make every slot large.
func (p *pool) release(ref uint64) {
	h := &p.slots[ref]
	p.bytes -= cap(h.buf)
	if cap(h.buf) > chunk {
		h.buf = nil
	}
	p.free = append(p.free, ref)
}
