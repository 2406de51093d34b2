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
}

// Copier copies src over the beginning of dst, which is as long, and returns the ones' complement sum (RFC 1071) of initial and src. read and write,
// unless nil, are where reading and writing will go on a little later: of as many bytes from there on as src has the cache may be asked for.
type Copier func(dst, src []byte, initial uint32, read, write *byte) uint16
