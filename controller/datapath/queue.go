package datapath

import "github.com/rscctl/rscctl/flowtable"

// outFrame is a frame that waits for its guest. Its slices keep their capacity when the entry is used again, so a warm queue
// allocates nothing.
type outFrame struct {
	Frame
	entry flowtable.Entry  // booked when the frame has reached its fate
	fixed bool             // the packets' IPv4 ID stands still
	seq   sequence         // the caller of push fills it
	hdr   [maxHeaders]byte // of a superframe with Sums, whose first packet is left as it came

	// A superframe that the guest does not take whole is cut again, and leaves in pieces, for the reason why.
	cut  bool
	why  flowtable.Reason
	done int  // pieces that earlier bursts delivered
	puts int  // Puts of the burst in hand: 1 for a whole frame, else its pieces
	paid bool // it is within its VM's rate
	lent bool // it lies in its sender's memory: only within emitWhole
	all  bool // the burst in hand has all that was left of it
}

// outQueue is the bounded first-in-first-out queue in front of one guest. A burst goes through it, so that the worker turns to
// one guest at a time, with one Commit for all of its frames. What the guest has no room for waits here; when the queue is
// full, the newest is dropped: the older ones are what the guest's TCP waits for.
type outQueue struct {
	frames []outFrame // ring, length a power of two
	most   int        // frames that push may bring
	short  []outFrame // its own, while frames is one of the worker's long ones
	head   uint32
	n      int
	chunks int               // UMEM chunks of all entries
	ledger *flowtable.Ledger // hears of what comes and goes
}

const (
	outQueueLen = 512          // frames; a power of two
	maxHeaders  = 18 + 40 + 60 // bytes: Ethernet with a tag, IPv6, TCP with options
)

func newOutQueue(l *flowtable.Ledger) *outQueue {
	return &outQueue{frames: make([]outFrame, outQueueLen), most: outQueueLen, ledger: l}
}

func (q *outQueue) full() bool { return q.n >= q.most }

// at is the entry i places behind the front.
func (q *outQueue) at(i int) *outFrame {
	return &q.frames[(q.head+uint32(i))&uint32(len(q.frames)-1)]
}

// push appends what the table gives out, and returns it. The table gets the lists that the entry had, unless kept is set: then they are another's,
// and stay as they are. The caller has checked full.
func (q *outQueue) push(sf *flowtable.Superframe, kept bool) *outFrame {
	f := q.at(q.n)
	q.n++
	if kept {
		f.fill(sf)
	} else {
		f.take(sf)
	}
	q.chunks += len(f.Refs)
	q.ledger.Enqueue(&f.entry)
	return f
}

// fill makes an entry a copy of what a table gives out.
func (f *outFrame) fill(sf *flowtable.Superframe) {
	f.Frags, f.Refs, f.Sums = append(f.Frags[:0], sf.Frags...), append(f.Refs[:0], sf.Refs...), append(f.Sums[:0], sf.Sums...)
	f.describe(sf)
}

// take makes an entry what a table gives out, and leaves the table its own lists.
func (f *outFrame) take(sf *flowtable.Superframe) {
	f.Frags, sf.Frags = sf.Frags, f.Frags
	f.Refs, sf.Refs = sf.Refs, f.Refs
	f.Sums, sf.Sums = sf.Sums, f.Sums
	f.describe(sf)
}

// describe makes all of an entry but the lists, which it has already, what a table gives out.
func (f *outFrame) describe(sf *flowtable.Superframe) {
	h := &f.Hdr
	h.Flags, h.GSOType, h.HdrLen, h.GSOSize = sf.Flags, sf.GSOType, sf.HdrLen, sf.GSOSize
	h.CsumStart, h.CsumOffset = sf.CsumStart, sf.CsumOffset
	f.Len = sf.Len
	f.entry, f.fixed = sf.Entry, sf.FixedID
	f.cut, f.done, f.puts, f.all, f.paid = false, 0, 0, false, false
	f.lent = len(f.Refs) == 0
	if len(f.Sums) > 0 && sf.Merged { // its headers are in the table's memory
		f.Frags[0] = f.hdr[:copy(f.hdr[:], f.Frags[0])]
	}
}

// pushFront puts frames in front of all that waits, in their order, and takes their contents. The ring grows where that is more than
// it ever has to hold otherwise.
func (q *outQueue) pushFront(frames []outFrame) {
	for q.n+len(frames) > len(q.frames) {
		q.grow()
	}
	for i := len(frames) - 1; i >= 0; i-- {
		q.head--
		q.n++
		f := q.at(0)
		f.swap(&frames[i])
		q.chunks += len(f.Refs)
		q.ledger.Enqueue(&f.entry)
	}
}

// grow doubles the ring. What it has taken is given out by at, whose order stays.
func (q *outQueue) grow() {
	larger := make([]outFrame, 2*len(q.frames))
	for i := range q.n {
		larger[i].swap(q.at(i))
	}
	q.frames, q.head = larger, 0
}

// swap exchanges two entries. Each keeps the other's slices, and headers of its own move with it.
func (f *outFrame) swap(with *outFrame) {
	mine, theirs := f.ownsHeaders(), with.ownsHeaders()
	*f, *with = *with, *f
	if theirs {
		f.Frags[0] = f.hdr[:len(f.Frags[0])]
	}
	if mine {
		with.Frags[0] = with.hdr[:len(with.Frags[0])]
	}
}

// ownsHeaders says whether the frame begins in hdr, which moves with the entry.
func (f *outFrame) ownsHeaders() bool {
	return len(f.Frags) > 0 && len(f.Frags[0]) > 0 && &f.Frags[0][0] == &f.hdr[0]
}

func (q *outQueue) front() *outFrame { return q.at(0) }

// pop takes the oldest entry off; it stays readable until the next push.
func (q *outQueue) pop() *outFrame {
	f := q.at(0)
	q.head++
	q.leave(f)
	return f
}

// popNewest takes the newest entry off; it stays readable until the next push.
func (q *outQueue) popNewest() *outFrame {
	f := q.at(q.n - 1)
	q.leave(f)
	return f
}

func (q *outQueue) leave(f *outFrame) {
	q.n--
	q.chunks -= len(f.Refs)
	q.ledger.Dequeue(&f.entry)
	if q.n == 0 { // the next ones in the same entries: all of the ring in turn would never be in the cache
		q.head = 0
	}
	if f.lent { // nothing of a guest's memory is kept
		clear(f.Frags)
	}
}
