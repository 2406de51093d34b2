//go:build !amd64

package checksum

func sumVector(b []byte) (acc uint64, rest []byte) { return 0, b }

func copiesWhole() bool { return false }

func copyWhole(_, _ *byte, _ int, _, _ *byte, _ uint32) uint32 { return 0 }

func copyPiece(dst, src []byte, _, _ *byte, sum uint32) uint32 {
	return plus(copyWords(0, dst, src), sum)
}
