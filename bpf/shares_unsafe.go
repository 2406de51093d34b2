package bpf

import "unsafe"

// rxQueueSize is the size of a value of the map shares, which lie one behind the other.
const rxQueueSize = int(unsafe.Sizeof(rxQueue{}))

// rxQueueAt returns a queue's account in the mapped map. The slice index checks that it lies in mem, which begins at a page; the
// size is a multiple of 64, so every word is aligned.
func rxQueueAt(mem []byte, queue int) *rxQueue {
	return (*rxQueue)(unsafe.Pointer(&mem[queue*rxQueueSize:][:rxQueueSize][0]))
}
