package datapath

import "github.com/rscctl/rscctl/controller/xsk"

// NIC is one queue of an uplink: frames in the chunks of a UMEM. An *xsk.Socket is one. Only the worker's goroutine calls
// it, but for Stats.
//
// A chunk is in one hand at a time. Recv and AllocTx hand it to the worker; Free and Send take it back.
type NIC interface {
	// Recv takes up to len(d) frames, in the order they came.
	Recv(d []xsk.Desc) int
	// Received returns a frame's bytes, nil for a descriptor outside the UMEM, and what XDP may have written in front of them:
	// xsk.MetaSize bytes, or nil. Writing to them touches no other chunk.
	Received(d xsk.Desc) (frame, meta []byte)
	// Chunks are where most frames lie, with what XDP has written in front of them: of those the worker does not ask Received. It may be the zero
	// Chunks. It is asked for once, when the worker starts.
	Chunks() xsk.Chunks
	// Free gives the chunk that ref lies in back. A ref that is not out is ignored.
	Free(ref uint64)
	// FreeAll is Free for the chunks of a frame.
	FreeAll(refs []uint64)
	// Refill hands free chunks to the kernel to receive into, and returns how many.
	Refill() int

	// TxRoom is how many frames AllocTx and Send take now.
	TxRoom() int
	// AllocTx takes a chunk to build a frame in; ok is false when none is free.
	AllocTx() (buf []byte, d xsk.Desc, ok bool)
	// Send queues the first n bytes of d for the wire; false, and the chunk stays the worker's, when there is no room.
	Send(d xsk.Desc, n int) bool
	// Publish shows the kernel what Send queued, without waking it: what was published goes out also when this process dies.
	Publish()
	// TxPending is how many frames were sent and are not completed.
	TxPending() int
	// TxUnsent reports whether Flush is to be called again soon: the kernel may have left some of them. What is on its way comes back by itself.
	TxUnsent() bool
	// Flush publishes, wakes the kernel where it wants that, and takes completed chunks back. An error means that the link is down.
	Flush() error

	// BusyPoll has the driver look for frames now, and returns at once.
	BusyPoll()
	// FD is readable when frames wait, and writable when there is room to send.
	FD() int
	// Stats are the kernel's own counters of the queue.
	Stats() (xsk.Stats, error)
}

// Shares hears which frames have left the NIC's RX ring, so that XDP holds every VM to its share of it. A *bpf.Shares is one. Only
// the worker's goroutine calls it.
type Shares interface {
	// Took notes a frame that has left the ring: the id that XDP knows its VM by, and the tickets in its metadata.
	Took(port uint32, vm, queue uint16)
	// Publish shows XDP what Took has noted, and that the worker does not hang. It comes behind every burst, also an empty one.
	Publish()
	// Overtaken returns how many of the frames that are taken next have waited while XDP left later ones of the VMs behind a bridge to
	// the kernel, because the worker hung: not 0 once after that.
	Overtaken() int
}

// Multicast is where the group frames come from that XDP leaves to the host. Only the worker's goroutine calls it.
type Multicast interface {
	// Recv copies one frame, Ethernet first, into buf and returns the part that it fills. The outer 802.1Q tag is out of the
	// frame: tci, in host order, when tagged. An error means that no frame waits.
	Recv(buf []byte) (frame []byte, tci uint16, tagged bool, err error)
	// FD is readable when frames wait.
	FD() int
	// Dropped is how many frames were lost or left out since the socket was opened: by the kernel because the worker was too
	// slow, and by the socket because nobody here can use them.
	Dropped() (slow, unusable uint64)
}
