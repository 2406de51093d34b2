package xsk

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeKernel is the kernel's side of a socket over plain memory: the same rings with the roles changed.
type fakeKernel struct {
	s        *Socket
	fill     addrRing
	comp     addrRing
	rx       descRing
	tx       descRing
	sequence byte
}

// fakeOffsets lay a ring out as the kernel does: the indices on lines of their own, then the entries.
var fakeOffsets = unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 192}

// fakeMemory is what a socket, its owner before, and the kernel share.
type fakeMemory struct {
	umem               []byte
	owner              owners
	fill, comp, rx, tx []byte
	chunk, frame       int // bytes of a chunk, and of a buffer
}

// heap makes memory for rings of that many entries. It comes from slices of words, so that it is aligned.
func heap(chunks, chunkSize, ring int) fakeMemory {
	entries := func(size int) []byte {
		words := make([]uint64, (int(fakeOffsets.Desc)+ring*size)/8)
		return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	}
	return fakeMemory{make([]byte, chunks*chunkSize), make(owners, chunks), entries(addrSize), entries(addrSize), entries(descSize), entries(descSize), chunkSize, 0}
}

func fakeSocket(chunks, chunkSize, ring, reserve int) (*Socket, *fakeKernel) {
	m := heap(chunks, chunkSize, ring)
	s := m.socket(ring, reserve)
	return s, m.kernel(s)
}

// socket is over m, at the positions that are in it.
func (m fakeMemory) socket(ring, reserve int) *Socket {
	return &Socket{
		parts: Parts{-1, -1, -1}, umem: newUmem(m.umem, m.chunk, m.frame, m.owner), reserve: reserve, txBudget: maxTxBudget,
		rings: rings{
			fill: newAddrRing(m.fill, fakeOffsets, ring), comp: newAddrRing(m.comp, fakeOffsets, ring),
			rx: newDescRing(m.rx, fakeOffsets, ring), tx: newDescRing(m.tx, fakeOffsets, ring),
		},
	}
}

// kernel is the other side of s.
func (m fakeMemory) kernel(s *Socket) *fakeKernel {
	ring := int(s.fill.size)
	return &fakeKernel{
		s: s, fill: newAddrRing(m.fill, fakeOffsets, ring), comp: newAddrRing(m.comp, fakeOffsets, ring),
		rx: newDescRing(m.rx, fakeOffsets, ring), tx: newDescRing(m.tx, fakeOffsets, ring),
	}
}

// receive does what the kernel does with up to n frames of length bytes: a chunk from the fill ring, the frame behind the
// headroom, a descriptor into the RX ring.
func (k *fakeKernel) receive(n, length int) int {
	done := 0
	var one [1]uint64
	for done < n && k.rx.room(1) > 0 && consume(&k.fill, one[:]) == 1 {
		d := Desc{Addr: one[0] + Headroom, Len: uint32(length)}
		k.sequence++
		for i := range k.s.umem.frame(d) {
			k.s.umem.mem[int(d.Addr)+i] = k.sequence
		}
		k.rx.put(d)
		done++
	}
	k.rx.publish()
	return done
}

// consume reads entries and gives them back at once, as the kernel does.
func consume[E any](r interface {
	read([]E) int
	release()
}, to []E) int {
	n := r.read(to)
	if n > 0 {
		r.release()
	}
	return n
}

// send takes up to n frames off the TX ring and completes them.
func (k *fakeKernel) send(n int) []Desc {
	out := make([]Desc, n)
	out = out[:consume(&k.tx, out)]
	for _, d := range out {
		k.comp.entries[k.comp.cachedP&k.comp.mask] = d.Addr
		k.comp.cachedP++
	}
	k.comp.publish()
	return out
}

func (k *fakeKernel) wantWakeup(x *index, on bool) {
	*x.flags = 0
	if on {
		*x.flags = needWakeup
	}
}

func mustConserve(t *testing.T, s *Socket, chunks int) {
	t.Helper()
	out := 0
	for _, word := range s.umem.owner {
		if word != inPool {
			out++
		}
	}
	if s.FreeChunks()+out != chunks {
		t.Fatalf("%d chunks free, %d out, of %d", s.FreeChunks(), out, chunks)
	}
}

func frameOf(s *Socket, d Desc) []byte {
	f, _ := s.Received(d)
	return f
}

func metaOf(s *Socket, d Desc) []byte {
	_, m := s.Received(d)
	return m
}
