package meta

import (
	"encoding/binary"
	"testing"
)

// Whatever a byte of the metadata is: what Plain says yes to is what Parse says of a segment of TCP in IPv4, and all of that.
func TestPlainIsWhatParseSaysOfNearlyAllFrames(t *testing.T) {
	const size = 1514
	var b Block
	le := binary.LittleEndian
	le.PutUint32(b[:], magic)
	le.PutUint32(b[4:], PortID(3, 5))
	le.PutUint16(b[8:], size)
	le.PutUint16(b[10:], 0x1234)
	le.PutUint16(b[12:], 14)
	le.PutUint16(b[14:], 34)
	le.PutUint16(b[16:], 66)
	le.PutUint16(b[18:], 1448)
	b[22], b[24], b[25] = 4, Keyed, tcpACK
	le.PutUint16(b[26:], 0x5678)
	plain := 0
	for at := range b {
		was := b[at]
		for v := range 256 {
			b[at] = byte(v)
			for _, n := range []int{size, size - 1, size + 1<<16} {
				var m Meta
				ok := Parse(b[:], n, &m)
				want := ok && m.L3 == 14 && m.L4 == 34 && m.Family == 4 && m.Verdict == 0 && m.Flags&^Accelerated == Keyed && m.TCPFlags&^tcpPSH == tcpACK
				if got := b.Plain(n); got != want {
					t.Fatalf("byte %d is %#x, %d bytes: plain %t; %+v", at, v, n, got, m)
				}
				if !want {
					continue
				}
				plain++
				vm, queue := b.Tickets()
				if b.Port() != m.Port || b.Payload() != m.Payload || b.PayloadLen() != m.PayloadLen || vm != m.VMTicket || queue != m.QueueTicket {
					t.Fatalf("byte %d is %#x: port %d, payload %d+%d, tickets %d, %d; %+v", at, v, b.Port(), b.Payload(), b.PayloadLen(), vm, queue, m)
				}
			}
		}
		b[at] = was
	}
	if plain == 0 {
		t.Error("nothing is plain")
	}
}
