// Package stream makes the test data: bytes that both ends can make by themselves from a seed, fast enough that an
// emulated CPU is not busy with making them, and so irregular that a lost, doubled or moved byte changes the hash.
package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
)

// Reader yields the first n bytes of the stream of a seed, then io.EOF. The bytes do not depend on how they are read.
type Reader struct {
	state uint64
	left  int64
	word  [8]byte
	used  int // bytes of word that were handed out; 8 = none left
}

// New returns the first n bytes of the stream of seed.
func New(seed uint64, n int64) *Reader { return &Reader{state: seed, left: n, used: 8} }

// Read fills b, and fails only with io.EOF.
func (r *Reader) Read(b []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(b)) > r.left {
		b = b[:r.left]
	}
	n := 0
	if r.used < len(r.word) {
		n = copy(b, r.word[r.used:])
		r.used += n
	}
	for ; len(b)-n >= 8; n += 8 {
		binary.LittleEndian.PutUint64(b[n:], r.next())
	}
	if n < len(b) {
		binary.LittleEndian.PutUint64(r.word[:], r.next())
		r.used = copy(b[n:], r.word[:])
		n += r.used
	}
	r.left -= int64(n)
	return n, nil
}

// next is SplitMix64 (Steele, Lea, Flood 2014).
func (r *Reader) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Sum is the SHA-256 of the first n bytes of the stream of seed, in hex.
func Sum(seed uint64, n int64) string {
	h := sha256.New()
	// A hash takes every write; only the reader could fail, and it does not.
	_, _ = io.CopyBuffer(h, struct{ io.Reader }{New(seed, n)}, make([]byte, 64<<10))
	return hex.EncodeToString(h.Sum(nil))
}
