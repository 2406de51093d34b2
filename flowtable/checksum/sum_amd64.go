package checksum

import "golang.org/x/sys/cpu"

// vectorMin is the length from which the vector code pays.
const vectorMin = 128

// sumAVX2 adds b, whose length is a multiple of 32, as little-endian 32-bit words into 64 bits (no carry is lost below
// 2^32 words).
//
//go:noescape
func sumAVX2(b []byte) uint64

func sumWords(b []byte) uint64 {
	if len(b) < vectorMin || !cpu.X86.HasAVX2 {
		return sumPortable(b)
	}
	n := len(b) &^ 31
	s := sumAVX2(b[:n])
	// Both are far from overflowing once folded to 32 bits and one carry.
	return s>>32 + s&0xffffffff + uint64(fold64(sumPortable(b[n:])))
}
