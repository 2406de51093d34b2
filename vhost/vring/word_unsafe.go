package vring

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// The words of a ring that one side writes while the other reads.
//
// flags and idx of avail, and of used, are one aligned 32-bit word each: flags in the low, idx in the high half on a
// little-endian machine. Go has no 16-bit atomics, but each of these words has one writer, which knows both halves, so
// a 32-bit store never tramples on the other side. A guest's own 16-bit store into avail is atomic beside our 32-bit
// load on every machine with coherent caches.
//
// used_event and avail_event are lone 16-bit words; the two bytes behind them may belong to somebody else, so they
// are accessed as they are. They are hints that race by design (section 2.7.10): whoever writes one fences and looks
// at the index again afterwards. go:norace says so to the race detector, go:noinline keeps the compiler from merging or
// hoisting the access.

// littleEndian is a constant to the compiler. Virtio 1.x rings are little-endian, and the halves above rely on it.
func littleEndian() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }

// aligned says whether b begins at a multiple of n bytes.
func aligned(b []byte, n uintptr) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%n == 0
}

// word32 is the 32-bit word at the front of b; the bounds are checked here.
func word32(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(&b[:4][0])) }

// word16 is the 16-bit word at the front of b.
func word16(b []byte) *uint16 { return (*uint16)(unsafe.Pointer(&b[:2][0])) }

//go:norace
//go:noinline
func load16(p *uint16) uint16 { return *p }

//go:norace
//go:noinline
func store16(p *uint16, v uint16) { *p = v }

// fence is a full barrier: a locked read-modify-write of a word that nobody else uses. An atomic store would not do
// where it is only a release (arm64; and under the race detector on amd64 too), since the loads behind it may overtake it.
type fence struct{ word uint32 }

func (f *fence) full() { atomic.AddUint32(&f.word, 1) }
