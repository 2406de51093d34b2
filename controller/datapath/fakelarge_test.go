package datapath

import (
	"fmt"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/controller/xsk"
)

const (
	fakeBuffer = 10240
	fakeHead   = 64 // in front of a frame in it
)

// fakeLarge are buffers of a fakeNIC for frames that no chunk holds, behind its chunks. A frame in one is sent in pieces, each of which
// is an entry of the ring.
type fakeLarge struct {
	tb    testing.TB
	base  uint64
	mem   []byte
	taken []bool
	sent  [][]byte // by the number in the Addr of their entries
	lost  xsk.Lost
}

// sentPiece marks entries of the TX ring that are pieces of a frame.
const sentPiece = 1 << 60

// jumbo gives a rig's worker an MTU of 9000, and buffers.
func (r *rig) jumbo(buffers int) *fakeLarge {
	r.tb.Helper()
	r.nic.large = &fakeLarge{tb: r.tb, base: uint64(len(r.nic.mem)), mem: make([]byte, buffers*fakeBuffer), taken: make([]bool, buffers)}
	r.w.cfg.Large, r.w.cfg.MTU = r.nic.large, 9000
	return r.nic.large
}

func (l *fakeLarge) has(addr uint64) bool {
	return l != nil && addr-l.base < uint64(len(l.mem))
}

func (l *fakeLarge) frame(d xsk.Desc) []byte {
	at := d.Addr - l.base
	end := at + uint64(d.Len)
	if at/fakeBuffer != (end-1)/fakeBuffer {
		return nil
	}
	return l.mem[at:end:end]
}

func (l *fakeLarge) give(tb testing.TB, ref uint64) {
	i := (ref - l.base) / fakeBuffer
	if !l.taken[i] {
		tb.Errorf("buffer %d was given back by one who does not have it", i)
		return
	}
	l.taken[i] = false
	for j := range l.mem[i*fakeBuffer : (i+1)*fakeBuffer] {
		l.mem[int(i)*fakeBuffer+j] = poison
	}
}

// one is nil for a buffer that is out.
func (l *fakeLarge) one(ref uint64) error {
	if i := (ref - l.base) / fakeBuffer; !l.taken[i] {
		return fmt.Errorf("buffer %d is in two hands", i)
	}
	return nil
}

// out is how many are not free.
func (l *fakeLarge) out() (n int) {
	if l == nil {
		return 0
	}
	for _, is := range l.taken {
		if is {
			n++
		}
	}
	return n
}

func (l *fakeLarge) ChunkRoom() int { return fakeChunk - xsk.Headroom }
func (l *fakeLarge) LargeRoom() int { return len(l.taken) - l.out() }
func (l *fakeLarge) Lost() xsk.Lost { return l.lost }

func (l *fakeLarge) AllocLarge() (buf []byte, d xsk.Desc, ok bool) {
	i := slices.Index(l.taken, false)
	if i < 0 {
		return nil, d, false
	}
	l.taken[i] = true
	d = xsk.Desc{Addr: l.base + uint64(i*fakeBuffer) + fakeHead, Len: fakeBuffer - fakeHead}
	return l.frame(d), d, true
}

// send queues a frame as the entries of its pieces.
func (l *fakeLarge) send(n *fakeNIC, d xsk.Desc) bool {
	f := slices.Clone(l.frame(d))
	pieces := (len(f) + l.ChunkRoom() - 1) / l.ChunkRoom()
	if len(n.tx)+pieces > n.txSize {
		return false
	}
	for i := range pieces {
		n.tx = append(n.tx, xsk.Desc{Addr: sentPiece | uint64(len(l.sent))<<1 | uint64(min(1, pieces-1-i)), Len: 1})
	}
	l.sent = append(l.sent, f)
	l.give(n.tb, d.Addr)
	return true
}

// piece is the frame that an entry of the TX ring is a piece of, nil for a frame in a chunk; last, when it is its last one.
func (l *fakeLarge) piece(d xsk.Desc) (frame []byte, last bool) {
	if l == nil || d.Addr&sentPiece == 0 {
		return nil, false
	}
	return l.sent[d.Addr&^sentPiece>>1], d.Addr&1 == 0
}

// receive receives a frame in a buffer, with what XDP leaves in front of it, if anything.
func (l *fakeLarge) receive(n *fakeNIC, frame, meta []byte) {
	l.tb.Helper()
	buf, d, ok := l.AllocLarge()
	if !ok {
		l.tb.Fatal("no buffer to receive into")
	}
	before := l.frame(xsk.Desc{Addr: d.Addr - xsk.MetaSize, Len: xsk.MetaSize})
	clear(before)
	copy(before, meta)
	n.rx = append(n.rx, xsk.Desc{Addr: d.Addr, Len: uint32(copy(buf, frame))})
}
