package virtio

// Frame is one frame on its way into a guest, by whatever way: a virtqueue, a ring of vhost-net, a packet socket.
type Frame struct {
	Hdr   NetHdr   // NumBuffers is filled in by whoever writes mergeable buffers
	Frags [][]byte // their concatenation is the frame, Ethernet first; empty fragments are allowed
	Len   int      // sum of the lengths of Frags, in bytes
	// Sums, unless empty, has an entry for each fragment behind the first, which holds all headers: one that is not 0 and the fragment sum up to
	// 0xffff, or the fragment is damaged. Then whoever copies the frame shows nothing of it to anybody. Copy tells.
	Sums []uint16
	Copy Copier
}

// Copier copies the fragments of src, one behind the other, over the memory of dst, which has room for them, and reports whether the ones'
// complement sum (RFC 1071) of each and its entry in sums is 0xffff, unless that is 0.
type Copier func(dst, src [][]byte, sums []uint16) bool
