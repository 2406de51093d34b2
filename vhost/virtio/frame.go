package virtio

// Frame is one frame on its way into a guest, by whatever way: a virtqueue, a ring of vhost-net, a packet socket.
type Frame struct {
	Hdr   NetHdr   // NumBuffers is filled in by whoever writes mergeable buffers
	Frags [][]byte // their concatenation is the frame, Ethernet first; empty fragments are allowed
	Len   int      // sum of the lengths of Frags, in bytes
}
