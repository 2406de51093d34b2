package checksum

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// checkCopy copies data to every kind of place, and looks that the bytes around it stay.
func checkCopy(t *testing.T, src []byte, at int, initial uint32) {
	t.Helper()
	want := reference(src, initial)
	for name, fn := range map[string]func(dst, src []byte, initial uint32) uint16{
		"vector":   func(dst, src []byte, initial uint32) uint16 { return Copy(dst, src, initial, nil, nil) },
		"portable": copyPortable,
		"ahead": func(dst, src []byte, initial uint32) uint16 { // what is asked for may end before that, and lie beside what is copied
			end := len(dst) - 1
			return Copy(dst, src, initial, &dst[end], &dst[end])
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

// What does not fit is not begun.
func TestCopyIntoTooLittleWritesNothing(t *testing.T) {
	for _, n := range []int{0, 1, 40, 199} {
		dst := make([]byte, n, 400)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("200 bytes were copied into %d", n)
				}
			}()
			Copy(dst[:n:n], ones(200), 0, nil, nil)
		}()
		if !bytes.Equal(dst[:cap(dst)], make([]byte, 400)) {
			t.Errorf("something of 200 bytes was written into %d", n)
		}
	}
}

// FuzzCopy holds the vector code, the portable code and Sum against each other.
func FuzzCopy(f *testing.F) {
	f.Add([]byte("abc"), uint32(0), uint8(0))
	f.Add(ones(1448), uint32(0xffffffff), uint8(3))
	f.Add(noise(14, 4096), uint32(1), uint8(14))
	f.Fuzz(func(t *testing.T, src []byte, initial uint32, at uint8) {
		checkCopy(t, src, int(at), initial)
		if got, want := Copy(make([]byte, len(src)), src, initial, nil, nil), Sum(src, initial); got != want {
			t.Fatalf("Copy = %#04x, Sum = %#04x", got, want)
		}
	})
}

func TestCopyDoesNotAllocate(t *testing.T) {
	src, dst := noise(15, 1448), make([]byte, 1448)
	if n := testing.AllocsPerRun(100, func() { Copy(dst, src, 1, nil, nil) }); n != 0 {
		t.Errorf("Copy allocates %v times", n)
	}
}

// BenchmarkCopy moves segments of 1,448 bytes, in chunks 2 KiB apart, into one ring of memory, in turn: in the first-level cache, in the
// second, and beyond. "copy" is the built-in, the floor; "copysum" is one pass; "sumcopy" is a sum and a copy behind it.
func BenchmarkCopy(b *testing.B) {
	for _, size := range []int{16 << 10, 512 << 10, 16 << 20} {
		src, dst := noise(16, size), make([]byte, size)
		for name, fn := range map[string]func(dst, src []byte) uint16{
			"copy":     func(dst, src []byte) uint16 { copy(dst, src); return 0 },
			"copysum":  func(dst, src []byte) uint16 { return Copy(dst, src, 0, nil, nil) },
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
