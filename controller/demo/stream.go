package demo

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"math/rand/v2"
)

// Checksums of a stream. The timed transfers use CRC-32C, which the processor computes at a fraction of the cost of the
// copy beside it, so that checking does not become what is measured; the verification transfers, one per mode and
// direction, use SHA-256. Both ends hash what the application wrote and read.
const (
	sumCRC = "crc32c"
	sumSHA = "sha256"
)

func newSum(name string) (hash.Hash, error) {
	switch name {
	case sumCRC:
		return crc32.New(crc32.MakeTable(crc32.Castagnoli)), nil
	case sumSHA:
		return sha256.New(), nil
	}
	return nil, fmt.Errorf("checksum %q: unknown", name)
}

func sumText(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// writeLen is one write of the sender. A write ends in a PSH, and a PSH ends a superframe: long writes are what bulk
// senders do.
const writeLen = 1 << 20

// patternLen is the length after which a stream repeats. It is no multiple of a segment's or a superframe's payload, so
// segments that changed places differ.
const patternLen = 8<<20 + 4099

// pattern is the seeded content of the streams: patternLen bytes, followed by its own beginning, so that every write of
// writeLen bytes is one slice of it.
func pattern(seed uint64) []byte {
	b := make([]byte, patternLen+writeLen)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b[:patternLen]) // never fails
	copy(b[patternLen:], b)
	return b
}
