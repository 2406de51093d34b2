package vringtest

import "unsafe"

// Heap returns n bytes of Go heap aligned to 64.
func Heap(n int) []byte {
	b := make([]byte, n+63)
	off := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 63)
	return b[off : off+n : off+n]
}
