package controller

import (
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// outFrame is one frame on its way into a guest: what the flow table handed out, kept until the guest's buffers took it.
// Its slices keep their capacity when the entry is used again, so a warm queue allocates nothing.
type outFrame struct {
	frame virtio.Frame
	refs  []uint64        // UMEM chunks that hold the bytes of frame
	entry flowtable.Entry // booked when the frame is delivered or dropped
	fixed bool            // the packets' IPv4 ID stands still
	cut   int             // pieces already delivered of a superframe that has to be cut again for this guest
}

// outQueue is the bounded first-in-first-out queue in front of one guest's RX virtqueue. A burst goes through it so that
// one virtqueue at a time is locked, with one used.idx store and at most one call per burst; what the guest has no
// buffers for waits in it. The newest is dropped when it is full.
type outQueue struct {
	frames []outFrame // ring, length a power of two
	head   uint32
	n      int
	chunks int // UMEM chunks referenced by all entries
	ledger *flowtable.Ledger
}

const outQueueLen = 512 // frames; a power of two

func newOutQueue(l *flowtable.Ledger) *outQueue {
	return &outQueue{frames: make([]outFrame, outQueueLen), ledger: l}
}

func (q *outQueue) full() bool { return q.n == len(q.frames) }

func (q *outQueue) at(i int) *outFrame {
	return &q.frames[(q.head+uint32(i))&uint32(len(q.frames)-1)]
}

// push appends a copy of sf. The caller has checked full.
func (q *outQueue) push(sf *flowtable.Superframe) {
	f := q.at(q.n)
	q.n++
	f.frame.Hdr.Flags, f.frame.Hdr.GSOType = sf.Flags, sf.GSOType
	f.frame.Hdr.HdrLen, f.frame.Hdr.GSOSize = sf.HdrLen, sf.GSOSize
	f.frame.Hdr.CsumStart, f.frame.Hdr.CsumOffset = sf.CsumStart, sf.CsumOffset
	f.frame.Frags = append(f.frame.Frags[:0], sf.Frags...)
	f.frame.Len = sf.Len
	f.refs = append(f.refs[:0], sf.Refs...)
	f.entry, f.fixed, f.cut = sf.Entry, sf.FixedID, 0
	q.ledger.Enqueue(&f.entry)
	q.chunks += len(f.refs)
}

func (q *outQueue) front() *outFrame { return q.at(0) }

func (q *outQueue) popFront() {
	f := q.front()
	q.chunks -= len(f.refs)
	q.ledger.Dequeue(&f.entry)
	q.head++
	q.n--
}

// popBack takes the newest entry off; it stays readable until the next push.
func (q *outQueue) popBack() *outFrame {
	f := q.at(q.n - 1)
	q.chunks -= len(f.refs)
	q.ledger.Dequeue(&f.entry)
	q.n--
	return f
}
