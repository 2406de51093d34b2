package bpf

import "unsafe"

// flowSlotSize is the size of a value of the map flow_slots, which lie one behind the other.
const flowSlotSize = int(unsafe.Sizeof(flowSlot{}))

// slotsAt returns the n slots of the mapped map. The slice index checks that they lie in mem, which begins at a page; the size is a
// multiple of 64, so every word is aligned.
func slotsAt(mem []byte, n int) []flowSlot {
	return unsafe.Slice((*flowSlot)(unsafe.Pointer(&mem[:n*flowSlotSize][0])), n)
}
