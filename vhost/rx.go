package vhost

import (
	"runtime/debug"
	"sync/atomic"

	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// RxQueue is a receive virtqueue: frames to the guest.
type RxQueue struct {
	queue

	mrg      bool
	budget   int   // chains that one superframe may take
	flags    uint8 // of a header that the guest's features allow
	oldFault bool  // of the goroutine between Begin and Commit

	waiting waiters

	short  bool           // the last Put found too few buffers; kicks are armed
	armed  bool           // kicks are armed
	seen   vring.Position // where the ring had no more when short was set
	wanted int            // bytes that were not to be had then
	walked int            // pieces of chains looked at since Walked

	least    int          // bytes in the smallest chain of the last frame
	maxFrame atomic.Int64 // what MaxFrame returns

	taken []vring.Used // chains of the frame in hand
	segs  [][]byte     // their memory, in order
	hdr   [virtio.HdrSize]byte
}

// maxSuperPieces is how many pieces the chains of a superframe may have, all together, before it is given up: its packets need fewer
// at a time. A Linux guest's have 19.
const maxSuperPieces = 512

// Begin locks the queue for a burst. It returns false, and leaves the queue
// unlocked, when it is not running and enabled. After true, Commit must follow
// on the same goroutine.
func (q *RxQueue) Begin() bool {
	q.enter()
	if q.dev == nil || !q.enabled || q.failed {
		q.leave()
		return false
	}
	q.oldFault = debug.SetPanicOnFault(true)
	return true
}

// Commit makes the burst visible by one store of the used index, calls the
// guest at most once, and unlocks.
func (q *RxQueue) Commit() {
	if !q.failed {
		_ = q.publish() // the port has been told
		q.learn()
	}
	debug.SetPanicOnFault(q.oldFault)
	q.leave()
}

func (q *RxQueue) publish() (err error) {
	defer q.guard(&err)
	q.publishUsed()
	if q.armed && !q.short && q.waiting.n.Load() == 0 {
		q.armed = false
		q.dev.DisableNotify()
	}
	return nil
}

// MaxFrame tells how long a superframe may be, in bytes from Ethernet on, to fit
// buffers like those of the last frame: one chain without MRG_RXBUF, otherwise
// Config.MaxBuffers of them. 0 means that none was seen since the ring started.
// Longer superframes are no mistake, Put refuses them with ErrTooBig; but what
// is never made need not be cut again. Safe from any goroutine.
func (q *RxQueue) MaxFrame() int { return int(q.maxFrame.Load()) }

// learn updates MaxFrame. The caller holds mu.
func (q *RxQueue) learn() {
	n := 0
	if q.least > 0 {
		n = max(1, min(q.least*q.budget-q.hdrLen, MaxFrame))
	}
	if int64(n) != q.maxFrame.Load() {
		q.maxFrame.Store(int64(n))
	}
}

// Put copies one frame into guest buffers: all of it or nothing. The guest
// sees it after Commit. Between Begin and Commit only. The errors are
// ErrNoBuffers, ErrTooBig, ErrNotNegotiated, ErrBadFrame and ErrPortFailed.
func (q *RxQueue) Put(f *virtio.Frame) error {
	if q.failed {
		return ErrPortFailed
	}
	err := q.check(f)
	if err == nil {
		err = q.put(f)
	}
	switch err {
	case nil:
		q.cnt.now[cRxFrames]++
		q.cnt.now[cRxBytes] += uint64(f.Len)
		q.cnt.now[cRxBuffers] += uint64(len(q.taken))
	case ErrNoBuffers:
		q.cnt.now[cRxNoBuffers]++
	case ErrTooBig:
		q.cnt.now[cRxTooBig]++
	case ErrNotNegotiated, ErrBadFrame:
		q.cnt.now[cRxRefused]++
	}
	return err
}

// check refuses what the guest's features do not allow. It looks at the header
// only: whether it fits the frame is the caller's business, and the tests'.
func (q *RxQueue) check(f *virtio.Frame) error {
	n := 0
	for _, b := range f.Frags {
		n += len(b)
	}
	if n != f.Len || n < minFrame || n > MaxFrame {
		return ErrBadFrame
	}
	h := &f.Hdr
	if h.Flags&^q.flags != 0 {
		return ErrNotNegotiated
	}
	if h.GSOType == virtio.GSONone {
		if h.Flags&virtio.HdrRSCInfo != 0 { // there would be nothing to count
			return ErrBadFrame
		}
		return nil
	}
	if q.flags&^h.Flags&virtio.HdrRSCInfo != 0 { // where it is negotiated it is a duty (section 5.1.6.4.1)
		return ErrNotNegotiated
	}
	switch h.GSOType &^ virtio.GSOECN {
	case virtio.GSOTCPv4:
		if !q.features.Has(virtio.FGuestTSO4) {
			return ErrNotNegotiated
		}
	case virtio.GSOTCPv6:
		if !q.features.Has(virtio.FGuestTSO6) {
			return ErrNotNegotiated
		}
	default:
		return ErrNotNegotiated
	}
	if h.GSOType&virtio.GSOECN != 0 && !q.features.Has(virtio.FGuestECN) {
		return ErrNotNegotiated
	}
	if h.GSOSize == 0 || h.Flags&virtio.HdrNeedsCsum == 0 { // section 5.1.6.4.1: always with a GSO type
		return ErrBadFrame
	}
	return nil
}

// put gathers chains until the frame fits, then copies. Nothing is written into
// buffers before there are enough, and the ring is rewound if there are not.
func (q *RxQueue) put(f *virtio.Frame) (err error) {
	defer q.guard(&err)
	need := q.hdrLen + f.Len
	if q.short && need >= q.wanted && !q.news() {
		return ErrNoBuffers // without a walk: what was too little is no more
	}
	limit, super := q.size, f.Hdr.GSOType != virtio.GSONone
	if super { // anything else cannot be cut
		limit = min(limit, q.budget)
	}
	err = q.gather(need, limit, super)
	if err != nil {
		return err
	}
	q.short = false
	f.Hdr.NumBuffers = uint16(len(q.taken)) // at most the ring's size
	f.Hdr.Encode(q.hdr[:])
	scatter(q.segs, q.hdr[:q.hdrLen], f.Frags)
	q.dev.Push(q.taken)
	return nil
}

// gather takes chains for need bytes, at most limit of them, and of few pieces for a superframe.
func (q *RxQueue) gather(need, limit int, super bool) error {
	q.taken, q.segs = q.taken[:0], q.segs[:0]
	var first vring.Position
	whole := need
	for armed := false; need > 0; {
		if len(q.taken) == limit { // more buffers, or the same ones later, do not help
			if limit < q.size {
				q.cnt.now[cRxOverBudget]++
			}
			q.giveBack(first)
			return ErrTooBig
		}
		ok, err := q.dev.Next(&q.chain)
		if err != nil {
			return q.fail(err)
		}
		if !ok {
			// Ask for a kick at the point where the ring is empty for us, and look
			// again: avail_event must lie behind the chains that are given back, or
			// the guest's next buffers would not pass it.
			if !armed {
				armed, q.armed = true, true
				if q.dev.EnableNotify() {
					continue
				}
			}
			q.short, q.seen, q.wanted = true, q.dev.Mark(), whole
			q.giveBack(first)
			return ErrNoBuffers
		}
		c := &q.chain
		q.walked += c.Walked()
		if c.ReadLen > 0 {
			q.dev.Fail(vring.ErrReadable)
			return q.fail(vring.ErrReadable)
		}
		if len(q.taken) == 0 {
			first, q.least = c.At, c.WriteLen
		}
		q.least = min(q.least, c.WriteLen)
		q.taken = append(q.taken, vring.Used{Head: c.Head, Written: uint32(c.WriteLen)})
		if !q.mrg && c.WriteLen < need {
			q.giveBack(first)
			return ErrTooBig
		}
		q.segs = append(q.segs, c.Writable...)
		need -= c.WriteLen
		if super && need > 0 && len(q.segs) > maxSuperPieces {
			q.cnt.now[cRxOverBudget]++
			q.giveBack(first)
			return ErrTooBig
		}
	}
	// Every chain but the last is filled (section 5.1.6.4.1); need is now less than nothing by what the last has left.
	q.taken[len(q.taken)-1].Written -= uint32(-need)
	return nil
}

// giveBack undoes what gather has taken, from the first chain on.
func (q *RxQueue) giveBack(first vring.Position) {
	if len(q.taken) > 0 {
		q.dev.Rewind(first)
	}
}

// scatter copies hdr and frags into segs, which hold enough.
func scatter(segs [][]byte, hdr []byte, frags [][]byte) {
	dst, src := segs[0], hdr
	segs = segs[1:]
	for {
		n := copy(dst, src)
		dst, src = dst[n:], src[n:]
		for len(src) == 0 {
			if len(frags) == 0 {
				return
			}
			src, frags = frags[0], frags[1:]
		}
		if len(dst) == 0 {
			dst, segs = segs[0], segs[1:]
		}
	}
}

// ArmKick asks the guest for a kick when it posts buffers and reports whether
// some have arrived since a Put last found too few (or, without such a Put,
// whether there are any): then retry instead of waiting. Between Begin and
// Commit only.
func (q *RxQueue) ArmKick() (available bool) {
	if q.failed {
		return false
	}
	available, _ = q.arm()
	return available
}

func (q *RxQueue) arm() (available bool, err error) {
	defer q.guard(&err)
	q.armed = true
	if q.short { // put has armed the kick behind the buffers that it gave back
		return q.news(), nil
	}
	return q.dev.EnableNotify(), nil
}

// news tells whether the guest has posted buffers since a Put found too few: one load of what it has made available.
func (q *RxQueue) news() bool { return q.dev.Available(q.seen) }

// Walked returns how many pieces of descriptor chains Put has looked at since the last call, also in vain: what the
// shape of the guest's buffers costs. Between Begin and Commit only.
func (q *RxQueue) Walked() int {
	n := q.walked
	q.walked = 0
	return n
}

func (q *RxQueue) startRing(r user.RingSetup) error {
	// Buffers posted are no news until we run out of them. This writes to guest memory, so it comes first: a fault finds
	// the queue as it was, and one that waits finds the lock free.
	if err := r.Dev.Touch(r.Dev.DisableNotify); err != nil {
		return err
	}
	if err := q.lock(); err != nil {
		return err
	}
	defer q.unlock()
	q.mrg = r.Features.Has(virtio.FMrgRxbuf)
	q.flags = 0
	if r.Features.Has(virtio.FGuestCsum) {
		q.flags |= virtio.HdrNeedsCsum | virtio.HdrDataValid
	}
	if r.Features.Has(virtio.FRSCExt) {
		q.flags |= virtio.HdrRSCInfo
	}
	q.budget = 1
	if q.mrg {
		q.budget = min(q.port.cfg.MaxBuffers, r.Size)
	}
	q.least = 0
	q.learn()
	q.short, q.armed = false, false
	if q.taken == nil {
		q.taken, q.segs = make([]vring.Used, 0, 64), make([][]byte, 0, 256)
	}
	q.start(r)
	return nil
}

func (q *RxQueue) stopRing() (base vring.Position, err error) {
	if err := q.lock(); err != nil {
		return base, err
	}
	defer q.unlock()
	clear(q.segs[:cap(q.segs)])
	q.waiting.wake()
	return q.stop()
}
