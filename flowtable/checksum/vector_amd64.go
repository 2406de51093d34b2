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

// copySumAVX2 copies n bytes from src to dst and adds them as sumAVX2 does. n is a multiple of 32 and at most maxVector. The cache is asked for
// up to n bytes from read on, to be read, and from write on, to be written.
//
//go:noescape
func copySumAVX2(dst, src *byte, n int, read, write *byte) uint64

// copySumAVX512 is copySumAVX2 for any n of at least 64.
//
//go:noescape
func copySumAVX512(dst, src *byte, n int, read, write *byte) uint64

// copyVector copies as much of src as vector code can over dst, which is as long, and returns the sum and the length of that, which
// is even unless it is all. src has at least vectorMin bytes. read and write are what they are for copySumAVX2.
func copyVector(dst, src []byte, read, write *byte) (acc uint64, done int) {
	switch {
	case len(dst) != len(src) || !cpu.X86.HasAVX2:
		return 0, 0
	case !hasAVX512():
		return copyAVX2(dst, src, read, write)
	}
	return copyAVX512(dst, src, read, write)
}

// hasAVX512 tells whether the processor has all that copySumAVX512 is made of.
func hasAVX512() bool {
	return cpu.X86.HasAVX512VNNI && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL && cpu.X86.HasBMI2
}

// copiesWhole tells whether copyWhole copies n bytes, at least vectorMin.
func copiesWhole(n int) bool { return n <= maxVector && hasAVX512() }

// copyWhole copies n bytes from src to dst and returns their sum. read and write are what they are for copySumAVX2.
func copyWhole(dst, src *byte, n int, read, write *byte) uint64 {
	return copySumAVX512(dst, src, n, read, write)
}

func copyAVX2(dst, src []byte, read, write *byte) (acc uint64, done int) {
	for len(src)-done >= 32 {
		n := min((len(src)-done)&^31, maxVector)
		acc += copySumAVX2(&dst[done], &src[done], n, read, write)
		done += n
	}
	return acc, done
}

func copyAVX512(dst, src []byte, read, write *byte) (acc uint64, done int) {
	for len(src)-done >= 64 {
		n := min(len(src)-done, maxVector)
		acc += copySumAVX512(&dst[done], &src[done], n, read, write)
		done += n
	}
	return acc, done
}
