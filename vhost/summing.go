package vhost

import (
	"math/bits"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// summing copies a frame and verifies it in the same pass.
type summing struct {
	sums []uint16
	copy virtio.Copier
}

// scatter is the function scatter, and reports whether every fragment behind the first is what its sum says. It stops at the first that is not.
func (s *summing) scatter(segs [][]byte, hdr []byte, payload [][]byte) bool {
	at := spot{segs[0], segs[1:]}
	at.write(hdr)
	at.write(payload[0])
	for i, src := range payload[1:] {
		want := uint32(s.sums[i])
		var read *byte
		if i+2 < len(payload) && len(payload[i+2]) > 0 { // src is payload[i+1]
			read = &payload[i+2][0]
		}
		switch {
		case want == 0:
			at.write(src)
		case len(src) <= len(at.room): // of nearly all segments
			if s.copy(at.room[:len(src)], src, want, read, at.later(len(src))) != 0xffff {
				return false
			}
			at.room = at.room[len(src):]
		case s.pieces(&at, src, want, read) != 0xffff:
			return false
		}
	}
	return true
}

// pieces copies a fragment that does not fit into one piece of memory, and returns its sum. read is where the next one begins.
func (s *summing) pieces(at *spot, src []byte, sum uint32, read *byte) uint16 {
	odd := false
	for len(src) > 0 {
		if len(at.room) == 0 {
			at.next()
			continue
		}
		n := min(len(src), len(at.room))
		part := s.copy(at.room[:n], src[:n], 0, read, at.later(n))
		if odd { // its first byte is the second of a word
			part = bits.ReverseBytes16(part)
		}
		sum += uint32(part)
		odd = odd != (n&1 != 0)
		at.room, src = at.room[n:], src[n:]
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// spot is a place in the memory of a message.
type spot struct {
	room []byte
	segs [][]byte // behind room
}

// writeAhead is how far in front of what is written the cache is asked for memory.
const writeAhead = 512

// later is where n bytes will be written a little later than the n that are written now; nil where that is not known.
func (p *spot) later(n int) *byte {
	if len(p.room) >= writeAhead+n {
		return &p.room[writeAhead]
	}
	if len(p.segs) > 0 && len(p.segs[0]) >= n {
		return &p.segs[0][0]
	}
	return nil
}

func (p *spot) next() { p.room, p.segs = p.segs[0], p.segs[1:] }

// write copies src to the spot, and moves on.
func (p *spot) write(src []byte) {
	for len(src) > 0 {
		if len(p.room) == 0 {
			p.next()
			continue
		}
		n := copy(p.room, src)
		p.room, src = p.room[n:], src[n:]
	}
}
