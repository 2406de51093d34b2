// Package checksum computes the Internet checksum (RFC 1071): sums, the pseudo-headers of TCP and UDP, completion of
// partial checksums, and the incremental update of RFC 1624. It does not know what the bytes mean.
//
// A sum here is the ones-complement sum of 16-bit big-endian words, folded to 16 bits and not complemented. A field holds
// the complement of a sum. Data with its field in place sums to 0xffff when the field is right.
package checksum

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// ErrRange: a checksum's start or offset points outside the frame.
var ErrRange = errors.New("checksum: start or offset outside the frame")

// Sum returns the folded sum of b, beginning with initial, which need not be folded. An odd last byte counts as the high
// byte of a word. Any length, any alignment.
func Sum(b []byte, initial uint32) uint16 {
	// The sum of little-endian words is the byte-swapped sum of big-endian ones (RFC 1071, 2.B).
	return Fold(uint64(initial) + uint64(bits.ReverseBytes16(fold64(sumWords(b)))))
}

// Fold brings a sum down to 16 bits by adding the carries.
func Fold(s uint64) uint16 { return fold64(s) }

func fold64(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// sumPortable adds b as little-endian words with end-around carry, eight bytes at a time.
func sumPortable(b []byte) uint64 {
	var s, c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), c)
		s += c // a carry here means s is far from full
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	s, c = bits.Add64(s, binary.LittleEndian.Uint64(last[:]), 0)
	return s + c
}

// Pseudo4 is the sum of the IPv4 pseudo-header (RFC 9293, 3.1): src and dst of 4 bytes, l4len the bytes of the TCP or UDP
// header and data. The result is not folded: hand it to Sum, or Fold it.
func Pseudo4(src, dst []byte, proto uint8, l4len uint32) uint32 {
	return words(src[:4]) + words(dst[:4]) + uint32(proto) + l4len>>16 + l4len&0xffff
}

// Pseudo6 is the same for IPv6 (RFC 8200, 8.1): src and dst of 16 bytes.
func Pseudo6(src, dst []byte, proto uint8, l4len uint32) uint32 {
	return words(src[:16]) + words(dst[:16]) + uint32(proto) + l4len>>16 + l4len&0xffff
}

func words(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	return s
}

// Complete finishes a partial checksum in place: the field of 2 bytes at start+offset holds the pseudo-header's sum and
// becomes the complement of the sum from start to the frame's end. A UDP checksum (offset 6) of 0 is written as 0xffff,
// since 0 would mean "none" (RFC 768). The error is ErrRange.
func Complete(frame []byte, start, offset int) error {
	if start < 0 || offset < 0 || start > len(frame) || offset > len(frame)-start-2 {
		return ErrRange
	}
	c := ^Sum(frame[start:], 0)
	if c == 0 && offset == 6 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(frame[start+offset:], c)
	return nil
}

// Update16 returns the field old after a word it covers changed from from to to (RFC 1624, equation 3).
func Update16(old, from, to uint16) uint16 {
	return ^Fold(uint64(^old) + uint64(^from) + uint64(to))
}
