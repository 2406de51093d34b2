//go:build !amd64

package checksum

func sumVector(b []byte) (acc uint64, rest []byte) { return 0, b }
