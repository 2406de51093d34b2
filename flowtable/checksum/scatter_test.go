package checksum

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// cut cuts b into slices of at most most bytes, some of them empty. Nothing can be appended to one.
func cut(r *rand.Rand, b []byte, most int) (out [][]byte) {
	for len(b) > 0 {
		n := min(r.IntN(most+1), len(b))
		out = append(out, b[:n:n])
		b = b[n:]
	}
	return out
}

// sumsOf are those with which each fragment is whole; 0, which tells nothing, for some.
func sumsOf(r *rand.Rand, src [][]byte) []uint16 {
	sums := make([]uint16, len(src))
	for i, b := range src {
		if sums[i] = ^reference(b, 0); r.IntN(8) == 0 {
			sums[i] = 0
		}
	}
	return sums
}

// Wherever fragments and memory end, also within a word, the bytes arrive, nothing beside them is written, and each fragment is judged by its sum.
func TestScatterCopiesAndVerifies(t *testing.T) {
	r := rand.New(rand.NewPCG(31, 31))
	for _, most := range []int{1, 3, 70, 300, 1448, 5000, 3 * maxVector} {
		for range 40 {
			data := noise(r.Uint64(), r.IntN(min(20*most, 5*maxVector))+1)
			src := cut(r, data, most)
			sums := sumsOf(r, src)
			at := r.IntN(64)
			mem := bytes.Repeat([]byte{0xa5}, at+len(data)+40)
			dst := cut(r, mem[at:at+len(data)], most/2+r.IntN(2*most)+1)
			if !Scatter(dst, src, sums) {
				t.Fatalf("fragments of up to %d bytes: said to be damaged", most)
			}
			if !bytes.Equal(mem[at:at+len(data)], data) {
				t.Fatalf("fragments of up to %d bytes did not arrive as they were", most)
			}
			for i, c := range mem {
				if (i < at || i >= at+len(data)) && c != 0xa5 {
					t.Fatalf("byte %d beside the memory was written", i)
				}
			}
			i := r.IntN(len(src))
			if sums[i] == 0 {
				continue
			}
			if sums[i] ^= 1 << r.IntN(16); sums[i] != 0 && Scatter(dst, src, sums) != (reference(src[i], uint32(sums[i])) == 0xffff) {
				t.Fatalf("fragment %d of up to %d bytes: its damage was not seen", i, most)
			}
		}
	}
}

// Where there is too little room it panics, and writes nothing beyond.
func TestScatterIntoTooLittleStaysInside(t *testing.T) {
	for _, n := range []int{0, 1, 40, 199} {
		mem := make([]byte, 400)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("200 bytes were copied into %d", n)
				}
			}()
			Scatter([][]byte{mem[: n/2 : n/2], mem[n/2 : n : n]}, [][]byte{ones(200)}, []uint16{0xffff})
		}()
		if !bytes.Equal(mem[n:], make([]byte, 400-n)) {
			t.Errorf("something of 200 bytes was written behind %d", n)
		}
	}
}

// A fragment without a sum is not copied on trust.
func TestScatterNeedsASumForEach(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("two fragments were copied with one sum")
		}
	}()
	Scatter([][]byte{make([]byte, 9)}, [][]byte{{1}, {2}}, make([]uint16, 1))
}

// What the cache is asked for, to be written, are places that are written later or are free in the same piece of memory, none outside of it; also
// where a fragment crosses pieces. What it is asked for, to be read, is the next fragment.
func TestTheCacheIsAskedForWhatIsNext(t *testing.T) {
	for _, size := range []int{1536, 4096} {
		src := slices.Repeat([][]byte{make([]byte, 1448)}, 8)
		for i := range src {
			src[i] = make([]byte, 1448)
			if i > 0 && next(src[:i+1], i-1) != &src[i][0] {
				t.Errorf("behind fragment %d another one than the next was told", i-1)
			}
		}
		if next(src, 7) != &src[7][0] {
			t.Error("behind the last fragment one was told")
		}
		var dst [][]byte
		for range 8*1448/size + 1 {
			dst = append(dst, make([]byte, size))
		}
		written, others, writes := map[*byte]bool{}, 0, map[*byte]bool{}
		p := place{room: dst[0][78:], segs: dst[1:]}
		for _, from := range src {
			for left := len(from); left > 0; {
				if len(p.room) == 0 {
					p.room, p.segs = p.segs[0], p.segs[1:]
				}
				n := min(left, len(p.room))
				w := p.later(n)
				if written[w] {
					t.Error("what was written before is said to be written again")
				}
				if !slices.ContainsFunc(addresses(p.room), func(a *byte) bool { return a == w }) {
					others++
					writes[w] = true
				}
				for _, a := range addresses(p.room[:n]) {
					written[a] = true
				}
				p.room, left = p.room[n:], left-n
			}
		}
		if others == 0 {
			t.Error("told of no other piece of memory")
		}
		for w := range writes {
			if !written[w] {
				t.Error("a place was told to which nothing was written")
			}
		}
	}
}

func addresses(b []byte) []*byte {
	out := make([]*byte, len(b))
	for i := range b {
		out[i] = &b[i]
	}
	return out
}

func TestScatterDoesNotAllocate(t *testing.T) {
	src, dst, sums := [][]byte{noise(15, 1448), noise(16, 1448)}, [][]byte{make([]byte, 2000), make([]byte, 1000)}, []uint16{0, 0}
	if n := testing.AllocsPerRun(100, func() { Scatter(dst, src, sums) }); n != 0 {
		t.Errorf("Scatter allocates %v times", n)
	}
}
