package checksum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// ErrRange means that a checksum field lies outside the frame.
var ErrRange = errors.New("checksum: field outside the frame")

// vectorMin is the length from which vector code pays.
const vectorMin = 64

// maxVector bounds what one call of vector code may add up: 2,048 steps of at most 2^16 in each of 8 lanes stay below 2^31.
const maxVector = 1 << 16

// Sum returns the folded ones-complement sum of b and initial, not complemented. initial is a partial sum, folded or not:
// a pseudo header's, or an earlier Sum of an even number of bytes.
func Sum(b []byte, initial uint32) uint16 {
	var acc uint64 // sum of little-endian words: swapping the bytes of a folded sum swaps those of every word
	if len(b) >= vectorMin {
		acc, b = sumVector(b)
	}
	acc = addWords(acc, b)
	return Fold(uint64(bits.ReverseBytes16(Fold(acc))) + uint64(initial))
}

// sumPortable is Sum without vector code.
func sumPortable(b []byte, initial uint32) uint16 {
	return Fold(uint64(bits.ReverseBytes16(Fold(addWords(0, b)))) + uint64(initial))
}

// addWords adds b as little-endian words to acc; 64 bits at a time, with the carry brought round.
func addWords(acc uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), carry)
		b = b[8:]
	}
	var rest uint64
	if len(b) >= 4 {
		rest = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		rest += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		rest += uint64(b[0])
	}
	acc, carry = bits.Add64(acc, rest, carry)
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// Fold adds the 16-bit words of a sum of words, of any byte order, until one is left: 0 only if all were 0. The upper half of a number plus
// itself with its halves exchanged is the sum of both halves, their carry brought round.
func Fold(acc uint64) uint16 {
	return Fold32(uint32((acc + bits.RotateLeft64(acc, 32)) >> 32))
}

// Fold32 is Fold of a smaller sum.
func Fold32(acc uint32) uint16 { return uint16((acc + bits.RotateLeft32(acc, 16)) >> 16) }

// Pseudo4 is the partial sum of an IPv4 pseudo header: src and dst have 4 bytes, l4len is the length of the transport
// header and its payload (RFC 9293 section 3.1).
func Pseudo4(src, dst []byte, proto uint8, l4len uint32) uint32 {
	s, d := binary.BigEndian.Uint32(src), binary.BigEndian.Uint32(dst)
	return s>>16 + s&0xffff + d>>16 + d&0xffff + uint32(proto) + l4len>>16 + l4len&0xffff
}

// Pseudo6 is the partial sum of an IPv6 pseudo header: src and dst have 16 bytes (RFC 8200 section 8.1).
func Pseudo6(src, dst []byte, proto uint8, l4len uint32) uint32 {
	acc := uint64(proto) + uint64(l4len)
	for i := 0; i < 16; i += 4 {
		acc += uint64(binary.BigEndian.Uint32(src[i:])) + uint64(binary.BigEndian.Uint32(dst[i:]))
	}
	return uint32(Fold(acc))
}

// Complete finishes a checksum that was left partial (virtio NEEDS_CSUM): the field at start+offset holds the sum of the
// pseudo header, and the complement of the sum from start to the frame's end replaces it. A UDP checksum (offset 6) of 0
// would mean none, so it becomes 0xffff (RFC 768).
func Complete(frame []byte, start, offset int) error {
	if start < 0 || offset < 0 || start > len(frame) || offset > len(frame)-start-2 {
		return fmt.Errorf("%w: start %d, offset %d, length %d", ErrRange, start, offset, len(frame))
	}
	sum := ^Sum(frame[start:], 0)
	if sum == 0 && offset == 6 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(frame[start+offset:], sum)
	return nil
}

// Update16 returns the checksum field after one word under it changed (RFC 1624, equation 3).
func Update16(check, from, to uint16) uint16 {
	return ^Fold(uint64(^check) + uint64(^from) + uint64(to))
}
