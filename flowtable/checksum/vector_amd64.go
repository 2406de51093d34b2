package checksum

import (
	"golang.org/x/sys/cpu"
)

// maxVector bounds what one call may add up: 2,048 steps of at most 2^16 in each of 8 lanes stay below 2^31.
const maxVector = 1 << 16

// sumAVX2 adds n bytes at p as little-endian words. n is a multiple of 32 and at most maxVector.
//
//go:noescape
func sumAVX2(p *byte, n int) uint64

// sumVector sums as much of b as vector code can and returns the rest, which begins at an even offset.
func sumVector(b []byte) (acc uint64, rest []byte) {
	if !cpu.X86.HasAVX2 {
		return 0, b
	}
	for len(b) >= 32 {
		n := min(len(b)&^31, maxVector)
		acc += sumAVX2(&b[0], n)
		b = b[n:]
	}
	return acc, b
}
