package xsk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	addrSize = int(unsafe.Sizeof(uint64(0)))
	descSize = int(unsafe.Sizeof(ringDesc{}))
)

// word returns the 32-bit word at off. The slice index checks that it lies in mem; rings are aligned to pages, and the
// kernel's offsets to their words.
func word(mem []byte, off uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&mem[off : off+4][0]))
}

func newIndex(mem []byte, off unix.XDPRingOffset, size int) index {
	x := index{
		producer: word(mem, off.Producer), consumer: word(mem, off.Consumer), flags: word(mem, off.Flags),
		mask: uint32(size - 1), size: uint32(size),
	}
	x.reread() // the kernel may be at work already
	return x
}

// wordsOf is b as 64-bit words. b is the start of a page.
func wordsOf(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), len(b)/8)
}

// newAddrRing puts a ring of size entries over memory laid out by off.
func newAddrRing(mem []byte, off unix.XDPRingOffset, size int) addrRing {
	b := mem[off.Desc:][:size*addrSize]
	return addrRing{index: newIndex(mem, off, size), entries: unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), size)}
}

// newDescRing puts a ring of size entries over memory laid out by off.
func newDescRing(mem []byte, off unix.XDPRingOffset, size int) descRing {
	b := mem[off.Desc:][:size*descSize]
	return descRing{index: newIndex(mem, off, size), entries: unsafe.Slice((*ringDesc)(unsafe.Pointer(&b[0])), size)}
}
