package checksum

import "math/bits"

// Scatter copies the fragments of src, one behind the other, over the memory of dst, in one pass over the bytes: where they are at hand anyway
// their sums cost hardly more than the copy. It reports whether Sum(fragment, sum) is 0xffff for each fragment whose entry in sums is not 0, and
// stops behind one for which it is not. dst must have room for all, and overlap none of src. Either may be memory that vanishes: the
// fault is one of Scatter's, as with the built-in copy.
func Scatter(dst, src [][]byte, sums []uint16) bool {
	to := place{segs: dst, whole: copiesWhole()}
	sums = sums[:len(src)]
	for i, from := range src {
		sum := uint32(bits.ReverseBytes16(sums[i]))                                 // the codes add little-endian words
		if n := len(from); to.whole && n > 0 && n <= min(len(to.room), maxVector) { // of nearly all: a call less, in what is paid for each
			sum = copyWhole(&to.room[0], &from[0], n, next(src, i), to.later(n), sum)
			to.room = to.room[n:]
		} else {
			sum = to.pieces(from, next(src, i), sum)
		}
		if sum != 0xffff && sums[i] != 0 { // ones are ones whichever byte comes first
			return false
		}
	}
	return true
}

// next is where reading goes on behind fragment i, or begins with it: of as many bytes from there on as are copied the cache is asked for
// meanwhile, which never faults.
func next(src [][]byte, i int) *byte {
	if i+1 < len(src) && len(src[i+1]) > 0 {
		return &src[i+1][0]
	}
	return first(src[i])
}

// first is the first byte of b, or nil.
func first(b []byte) *byte {
	if len(b) == 0 {
		return nil
	}
	return &b[0]
}

// place is where in the memory of dst the next byte belongs.
type place struct {
	room  []byte
	segs  [][]byte // behind room
	whole bool     // there is a copyWhole: known once for all fragments
}

// writeAhead is how far in front of what is written the cache is asked for memory.
const writeAhead = 1024

// later is where n bytes will be written a little later than the n that are written now; where that is not known, where they are. There is room
// for some.
func (p *place) later(n int) *byte {
	if len(p.room) >= writeAhead+n {
		return &p.room[writeAhead]
	}
	if len(p.segs) > 0 && len(p.segs[0]) >= n {
		return first(p.segs[0])
	}
	return &p.room[0]
}

// pieces copies a fragment that does not fit into one piece of memory, and returns its sum and sum's, in which bytes may be swapped.
func (p *place) pieces(src []byte, read *byte, sum uint32) uint32 {
	for len(src) > 0 {
		if len(p.room) == 0 {
			p.room, p.segs = p.segs[0], p.segs[1:]
			continue
		}
		n := min(len(src), len(p.room), maxVector)
		if p.whole {
			sum = copyWhole(&p.room[0], &src[0], n, read, p.later(n), sum)
		} else {
			sum = copyPiece(p.room[:n], src[:n], read, p.later(n), sum)
		}
		if n&1 != 0 { // what follows begins with the second byte of a word: from here on all are swapped
			sum = uint32(bits.ReverseBytes16(uint16(sum)))
		}
		p.room, src = p.room[n:], src[n:]
	}
	return sum
}

// plus folds a sum, and adds another one.
func plus(acc uint64, sum uint32) uint32 { return uint32(Fold(uint64(Fold(acc)) + uint64(sum))) }
