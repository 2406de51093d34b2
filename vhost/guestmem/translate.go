package guestmem

// Translation is on the data path: it takes no lock, allocates nothing and never touches the memory itself.

// find returns the region that holds a guest physical address, or nil. The subtraction wraps for addresses below the
// region, which makes one comparison do for both ends: no region wraps around the address space.
func (t *Table) find(gpa uint64) *region {
	lo, hi := 0, len(t.regions)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		r := &t.regions[mid]
		if gpa-r.gpa < r.size {
			return r
		}
		if gpa < r.gpa {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return nil
}

// Slice returns the n bytes at a guest physical address, which must lie in one region; otherwise the error is
// [ErrRange]. The slice's capacity is its length.
func (t *Table) Slice(gpa, n uint64) ([]byte, error) {
	r := t.find(gpa)
	if r == nil {
		return nil, ErrRange
	}
	off := gpa - r.gpa
	if n > r.size-off {
		return nil, ErrRange
	}
	return r.mem[off : off+n : off+n], nil
}

// Append appends the n bytes at a guest physical address to dst, as one slice or, where they run on into adjacent
// regions, as several: a guest does not know where its regions end. It allocates only when dst's capacity does not
// suffice. On error, [ErrRange], dst comes back as it was. No slice is empty; n = 0 appends nothing.
func (t *Table) Append(dst [][]byte, gpa, n uint64) ([][]byte, error) {
	if gpa+n < gpa {
		return dst, ErrRange
	}
	out := dst
	for n > 0 {
		r := t.find(gpa)
		if r == nil {
			return dst, ErrRange
		}
		off := gpa - r.gpa
		part := min(n, r.size-off)
		out = append(out, r.mem[off:off+part:off+part])
		gpa += part
		n -= part
	}
	return out, nil
}

// SliceUVA returns the n bytes at an address of the front-end, which must lie in one region; otherwise the error is
// [ErrRange]. It searches all regions, being for ring addresses only.
func (t *Table) SliceUVA(uva, n uint64) ([]byte, error) {
	for i := range t.regions {
		r := &t.regions[i]
		if off := uva - r.uva; off < r.size && n <= r.size-off {
			return r.mem[off : off+n : off+n], nil
		}
	}
	return nil, ErrRange
}
