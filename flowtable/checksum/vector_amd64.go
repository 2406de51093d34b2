package checksum

import (
	"golang.org/x/sys/cpu"
)

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

// copySumAVX512 is copySumAVX2 for any n of at least 1, and adds sum, a folded one, to what it returns, which is folded, too.
//
//go:noescape
func copySumAVX512(dst, src *byte, n int, read, write *byte, sum uint32) uint32

// hasAVX512 tells whether the processor has all that copySumAVX512 is made of.
func hasAVX512() bool {
	return cpu.X86.HasAVX512VNNI && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL && cpu.X86.HasBMI2
}

// copiesWhole tells whether there is a copyWhole.
func copiesWhole() bool { return hasAVX512() }

// copyWhole copies n bytes, 1 to maxVector, from src to dst, and adds their little-endian words to sum. read and write are what they are for
// copySumAVX2.
func copyWhole(dst, src *byte, n int, read, write *byte, sum uint32) uint32 {
	return copySumAVX512(dst, src, n, read, write, sum)
}

// copyPiece is copyWhole by what code there is where that is not. dst is as long as src.
func copyPiece(dst, src []byte, read, write *byte, sum uint32) uint32 {
	if cpu.X86.HasAVX2 {
		return copyAVX2(dst, src, read, write, sum)
	}
	return plus(copyWords(0, dst, src), sum)
}

func copyAVX2(dst, src []byte, read, write *byte, sum uint32) uint32 {
	var acc uint64
	n := len(src) &^ 31
	if n >= vectorMin {
		acc = copySumAVX2(&dst[0], &src[0], n, read, write)
		dst, src = dst[n:], src[n:]
	}
	return plus(copyWords(acc, dst, src), sum)
}
