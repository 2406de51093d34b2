package checksum

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// reference is RFC 1071 word by word, in another way than the code under test.
func reference(b []byte, initial uint32) uint16 {
	s := uint64(initial)
	for i, c := range b {
		if i%2 == 0 {
			s += uint64(c) << 8
		} else {
			s += uint64(c)
		}
	}
	for s > 0xffff {
		s = s%0x10000 + s/0x10000
	}
	return uint16(s)
}

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func check(t *testing.T, b []byte, initial uint32) {
	t.Helper()
	want := reference(b, initial)
	if got := Sum(b, initial); got != want {
		t.Fatalf("Sum of %d bytes from %#x = %#04x, want %#04x", len(b), initial, got, want)
	}
	if got := sumPortable(b, initial); got != want {
		t.Fatalf("portable sum of %d bytes = %#04x, want %#04x", len(b), got, want)
	}
}

func TestSumAtEveryOffsetAndLength(t *testing.T) {
	for name, data := range map[string][]byte{"noise": noise(1, 300), "zeros": make([]byte, 300), "ones": ones(300)} {
		for off := range 65 {
			for n := range 201 {
				check(t, data[off:off+n], uint32(off*n)*77)
			}
		}
		_ = name
	}
}

func ones(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

func TestSumOfLongBuffers(t *testing.T) {
	data := noise(2, 65535+64)
	full := ones(65535 + 64)
	r := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		off, n := r.IntN(64), r.IntN(65536)
		check(t, data[off:off+n], r.Uint32())
		check(t, full[off:off+n], 0xffffffff)
	}
}

// A receiver verifies by summing everything, field included: it must come to ones.
func TestCompletedChecksumVerifies(t *testing.T) {
	for n := 28; n < 400; n++ {
		frame := noise(uint64(n), n)
		pseudo := Pseudo4(frame[0:4], frame[4:8], 6, uint32(n-8))
		binary.BigEndian.PutUint16(frame[8+16:], Fold(uint64(pseudo)))
		if err := Complete(frame, 8, 16); err != nil {
			t.Fatal(err)
		}
		if got := Sum(frame[8:], pseudo); got != 0xffff {
			t.Fatalf("length %d: sum with the completed field = %#04x", n, got)
		}
	}
}

func TestCompleteRefusesWhatIsOutside(t *testing.T) {
	for _, c := range [][3]int{{10, 9, 0}, {10, 0, 9}, {10, -1, 0}, {10, 0, -1}, {10, 11, 0}, {1, 0, 0}, {0, 0, 0}, {10, 1 << 62, 1 << 62}} {
		if err := Complete(make([]byte, c[0]), c[1], c[2]); err == nil {
			t.Errorf("Complete of %d bytes at %d+%d was taken", c[0], c[1], c[2])
		}
	}
}

func TestCompleteWritesNoZeroForUDP(t *testing.T) {
	frame := make([]byte, 8) // sums to 0xffff with this field, so the complement is 0
	binary.BigEndian.PutUint16(frame[6:], 0xffff)
	if err := Complete(frame, 0, 6); err != nil || binary.BigEndian.Uint16(frame[6:]) != 0xffff {
		t.Errorf("UDP field = %x, %v", frame[6:], err)
	}
}

func TestUpdateEqualsRecomputing(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 1000 {
		b := noise(r.Uint64(), 40)
		old := ^Sum(b, 0)
		from, to := binary.BigEndian.Uint16(b[8:]), uint16(r.Uint32())
		binary.BigEndian.PutUint16(b[8:], to)
		if got, want := Update16(old, from, to), ^Sum(b, 0); got != want {
			t.Fatalf("Update16 = %#04x, recomputed %#04x", got, want)
		}
	}
}

func TestSumDoesNotAllocate(t *testing.T) {
	b := noise(5, 1448)
	if n := testing.AllocsPerRun(100, func() { Sum(b, 1) }); n != 0 {
		t.Errorf("Sum allocates %v times", n)
	}
}

var sink uint64

func BenchmarkChecksum(b *testing.B) {
	data := noise(6, 1448)
	b.Run("sum", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			sink += uint64(Sum(data, 0))
		}
	})
	b.Run("portable", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			sink += uint64(sumPortable(data, 0))
		}
	})
	b.Run("read", func(b *testing.B) { // a plain read of the same bytes, to compare with
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var s uint64
			for i := 0; i+8 <= len(data); i += 8 {
				s ^= binary.LittleEndian.Uint64(data[i:])
			}
			sink += s
		}
	})
}
