package packettest

import "encoding/binary"

// Timestamps are the TCP options NOP, NOP, timestamp: the layout of RFC 7323 appendix A.
func Timestamps(val, echo uint32) []byte {
	b := []byte{1, 1, 8, 10}
	b = binary.BigEndian.AppendUint32(b, val)
	return binary.BigEndian.AppendUint32(b, echo)
}

// TimestampsLast is the same option in front of its padding: legal, and not the usual layout.
func TimestampsLast(val, echo uint32) []byte {
	b := Timestamps(val, echo)
	return append(b[2:12:12], 1, 1)
}

// TimestampsApart is the same option with a NOP on either side.
func TimestampsApart(val, echo uint32) []byte {
	b := Timestamps(val, echo)
	return append(b[1:12:12], 1)
}

// SACK are the options NOP, NOP, SACK with one block.
func SACK(left, right uint32) []byte {
	b := []byte{1, 1, 5, 10}
	b = binary.BigEndian.AppendUint32(b, left)
	return binary.BigEndian.AppendUint32(b, right)
}

// WindowScale are the options NOP and window scale.
func WindowScale(shift uint8) []byte { return []byte{1, 3, 3, shift} }
