package virtio

// Frame is one frame on its way into a guest, by whatever way: a virtqueue, a ring of vhost-net, a packet socket.
type Frame struct {
	Hdr   NetHdr   // NumBuffers is filled in by whoever writes mergeable buffers
	Frags [][]byte // their concatenation is the frame, Ethernet first; empty fragments are allowed
	Len   int      // sum of the lengths of Frags, in bytes
	// Sums, unless empty, has an entry for each fragment behind the first, which holds all headers: one that is not 0 and what Copy makes
	// of it and the fragment is 0xffff, or the fragment is damaged. Then whoever copies the frame shows nothing of it to anybody.
	Sums []uint16
	Copy Copier
	// Ahead, if not nil, hears of the fragment with a sum that is next while one is copied, and may ask the cache for it.
	Ahead func(fragment []byte)
}

// Copier copies src over the beginning of dst, which is as long, and returns the ones' complement sum (RFC 1071) of initial and src.
type Copier func(dst, src []byte, initial uint32) uint16
