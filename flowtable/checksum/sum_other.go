//go:build !amd64

package checksum

func sumWords(b []byte) uint64 { return sumPortable(b) }
