package checksum

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// whole copies src over the beginning of dst and returns Sum(src, initial).
func whole(dst, src []byte, initial uint32, code func(dst, src []byte, sum uint32) uint32) uint16 {
	sum := uint32(bits.ReverseBytes16(Fold(uint64(initial))))
	dst = dst[:len(src)]
	for len(src) > 0 {
		n := min(len(src), maxVector)
		sum = code(dst[:n], src[:n], sum)
		dst, src = dst[n:], src[n:]
	}
	return bits.ReverseBytes16(uint16(sum))
}

func copyPortable(dst, src []byte, initial uint32) uint16 {
	return whole(dst, src, initial, func(dst, src []byte, sum uint32) uint32 { return plus(copyWords(0, dst, src), sum) })
}

func copySum(dst, src []byte, initial uint32) uint16 {
	return whole(dst, src, initial, func(dst, src []byte, sum uint32) uint32 { return copyAs(dst, src, &src[0], &dst[0], sum) })
}

// copyAs copies by the code that Scatter chooses.
func copyAs(dst, src []byte, read, write *byte, sum uint32) uint32 {
	if copiesWhole() {
		return copyWhole(&dst[0], &src[0], len(src), read, write, sum)
	}
	return copyPiece(dst, src, read, write, sum)
}

// checkCopy copies data to every kind of place, and looks that the bytes around it stay.
func checkCopy(t *testing.T, src []byte, at int, initial uint32) {
	t.Helper()
	want := reference(src, initial)
	for name, fn := range map[string]func(dst, src []byte, initial uint32) uint16{
		"vector":   copySum,
		"portable": copyPortable,
		"ahead": func(dst, src []byte, initial uint32) uint16 { // what is asked for may end before that, and lie beside what is copied
			end := &dst[len(dst)-1]
			return whole(dst, src, initial, func(dst, src []byte, sum uint32) uint32 { return copyAs(dst, src, end, end, sum) })
		},
	} {
		mem := bytes.Repeat([]byte{0xa5}, at+len(src)+70)
		if got := fn(mem[at:], src, initial); got != want {
			t.Fatalf("%s: the sum of %d bytes from %#x copied to offset %d = %#04x, want %#04x", name, len(src), initial, at, got, want)
		}
		if !bytes.Equal(mem[at:at+len(src)], src) {
			t.Fatalf("%s: %d bytes at offset %d did not arrive as they were", name, len(src), at)
		}
		for i, c := range mem {
			if (i < at || i >= at+len(src)) && c != 0xa5 {
				t.Fatalf("%s: %d bytes at offset %d: byte %d was written", name, len(src), at, i)
			}
		}
	}
}

func TestCopySumsAndCopiesAtEveryOffsetAndLength(t *testing.T) {
	for _, data := range [][]byte{noise(11, 400), make([]byte, 400), ones(400)} {
		for off := range 33 {
			for n := range 290 {
				checkCopy(t, data[off:off+n], (off*7+n)%64, uint32(off*n)*77)
			}
		}
	}
}

func TestCopyOfLongBuffers(t *testing.T) {
	data, full := noise(12, 3*maxTestCopy), ones(3*maxTestCopy)
	r := rand.New(rand.NewPCG(13, 13))
	for range 40 {
		off, n := r.IntN(64), r.IntN(2*maxTestCopy)
		checkCopy(t, data[off:off+n], r.IntN(64), r.Uint32())
		checkCopy(t, full[off:off+n], r.IntN(64), 0xffffffff)
	}
}

const maxTestCopy = 1 << 16

// FuzzCopy holds the vector code, the portable code and Sum against each other.
func FuzzCopy(f *testing.F) {
	f.Add([]byte("abc"), uint32(0), uint8(0))
	f.Add(ones(1448), uint32(0xffffffff), uint8(3))
	f.Add(noise(14, 4096), uint32(1), uint8(14))
	f.Fuzz(func(t *testing.T, src []byte, initial uint32, at uint8) {
		checkCopy(t, src, int(at), initial)
		if got, want := copySum(make([]byte, len(src)), src, initial), Sum(src, initial); got != want {
			t.Fatalf("copied %#04x, Sum = %#04x", got, want)
		}
	})
}

// BenchmarkCopy moves segments of 1,448 bytes, in chunks 2 KiB apart, into one ring of memory, in turn: in the first-level cache, in the
// second, and beyond. "copy" is the built-in, the floor; "copysum" is one pass; "sumcopy" is a sum and a copy behind it.
func BenchmarkCopy(b *testing.B) {
	for _, size := range []int{16 << 10, 512 << 10, 16 << 20} {
		src, dst := noise(16, size), make([]byte, size)
		for name, fn := range map[string]func(dst, src []byte) uint16{
			"copy":     func(dst, src []byte) uint16 { copy(dst, src); return 0 },
			"copysum":  func(dst, src []byte) uint16 { return uint16(copyAs(dst, src, &src[0], &dst[0], 0)) },
			"sumcopy":  func(dst, src []byte) uint16 { s := Sum(src, 0); copy(dst, src); return s },
			"portable": func(dst, src []byte) uint16 { return copyPortable(dst, src, 0) },
		} {
			b.Run(fmt.Sprintf("memory=%dK/%s", size>>10, name), func(b *testing.B) {
				b.SetBytes(1448)
				from, to := 0, 78
				for b.Loop() {
					if from += 2048; from+1514 > size {
						from = 0
					}
					if to += 1448; to+1448 > size {
						to = 78
					}
					sink += uint64(fn(dst[to:to+1448], src[from+66:from+1514]))
				}
			})
		}
	}
}
