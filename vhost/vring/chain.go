package vring

// MaxSegments is the most pieces a chain may have, buffers that cross regions counted piece by piece: the kernel's UIO_MAXIOV.
const MaxSegments = 1024

// Chain is one descriptor chain as slices of guest memory. The zero value is ready; a Chain is large (24 KiB) and meant
// to be reused: [Device.Next] overwrites it and the slices of the last call with it.
type Chain struct {
	Head               uint16   // for Push
	Readable, Writable [][]byte // device reads, device writes; none is empty
	ReadLen, WriteLen  int      // their bytes

	segs [MaxSegments][]byte
}
