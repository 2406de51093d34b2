package checksum

import (
	"bytes"
	"testing"

	"golang.org/x/sys/cpu"
)

// Whichever of them this processor takes by itself, each of the vector codes that it has is held against the reference.
func TestEveryVectorCodeCopiesAndSums(t *testing.T) {
	codes := map[string]func(dst, src []byte, read, write *byte, sum uint32) uint32{}
	if cpu.X86.HasAVX2 {
		codes["AVX2"] = copyAVX2
	}
	if hasAVX512() {
		codes["AVX-512"] = func(dst, src []byte, read, write *byte, sum uint32) uint32 {
			return copySumAVX512(&dst[0], &src[0], len(src), read, write, sum)
		}
	}
	for name, code := range codes {
		for _, data := range [][]byte{noise(21, 1<<17), ones(1 << 17)} {
			for n := 1; n <= maxVector; n += 1 + n/7 {
				for at := range 66 {
					src, dst := data[at:min(at+n, len(data))], bytes.Repeat([]byte{0xa5}, n+140)
					sum := uint32(n*at) & 0xffff
					got, want := code(dst[at:at+len(src)], src, &src[0], &dst[0], sum), Fold(uint64(Fold(addWords(0, src)))+uint64(sum))
					if got != uint32(want) {
						t.Fatalf("%s: %d bytes to offset %d sum up to %#04x, want %#04x", name, len(src), at, got, want)
					}
					if !bytes.Equal(dst[at:at+len(src)], src) || dst[at+len(src)] != 0xa5 || at > 0 && dst[at-1] != 0xa5 {
						t.Fatalf("%s: %d bytes to offset %d: the bytes, or those beside them, are not what they were", name, len(src), at)
					}
				}
			}
		}
	}
}
