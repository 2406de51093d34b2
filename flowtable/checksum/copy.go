package checksum

import (
	"encoding/binary"
	"math/bits"
)

// copyWords copies src over dst, which is as long, and adds it as addWords does.
func copyWords(acc uint64, dst, src []byte) uint64 {
	var carry uint64
	for len(src) >= 32 && len(dst) >= 32 {
		a, b := binary.LittleEndian.Uint64(src), binary.LittleEndian.Uint64(src[8:])
		c, d := binary.LittleEndian.Uint64(src[16:]), binary.LittleEndian.Uint64(src[24:])
		acc, carry = bits.Add64(acc, a, carry)
		acc, carry = bits.Add64(acc, b, carry)
		acc, carry = bits.Add64(acc, c, carry)
		acc, carry = bits.Add64(acc, d, carry)
		binary.LittleEndian.PutUint64(dst, a)
		binary.LittleEndian.PutUint64(dst[8:], b)
		binary.LittleEndian.PutUint64(dst[16:], c)
		binary.LittleEndian.PutUint64(dst[24:], d)
		dst, src = dst[32:], src[32:]
	}
	for len(src) >= 8 && len(dst) >= 8 {
		v := binary.LittleEndian.Uint64(src)
		acc, carry = bits.Add64(acc, v, carry)
		binary.LittleEndian.PutUint64(dst, v)
		dst, src = dst[8:], src[8:]
	}
	var rest uint64
	if len(src) >= 4 && len(dst) >= 4 {
		v := binary.LittleEndian.Uint32(src)
		rest = uint64(v)
		binary.LittleEndian.PutUint32(dst, v)
		dst, src = dst[4:], src[4:]
	}
	if len(src) >= 2 && len(dst) >= 2 {
		v := binary.LittleEndian.Uint16(src)
		rest += uint64(v)
		binary.LittleEndian.PutUint16(dst, v)
		dst, src = dst[2:], src[2:]
	}
	if len(src) == 1 && len(dst) == 1 {
		rest += uint64(src[0])
		dst[0] = src[0]
	}
	acc, carry = bits.Add64(acc, rest, carry)
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}
