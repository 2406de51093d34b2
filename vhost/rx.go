package vhost

import (
	"runtime/debug"
	"sync/atomic"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// RxQueue is a receive virtqueue: frames to the guest.
type RxQueue struct {
	queue

	budget   int   // chains that one superframe may take
	flags    uint8 // of a header that the guest's features allow
	oldFault bool  // of the goroutine between Begin and Commit

	waiting  waiters
	writer   mergeable
	maxFrame atomic.Int64 // what MaxFrame returns
	hdr      [virtio.HdrSize]byte
	sum      summing
	burst    burst
}

// maxSuperPieces is how many pieces the chains of a superframe may have, all together, before it is given up: its packets need fewer
// at a time. A Linux guest's have 19.
const maxSuperPieces = 512

// burst is what Put has written since Begin. It becomes delivered, and is counted, with Commit.
type burst struct{ frames, bytes, buffers uint64 }

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
	q.burst = burst{}
	return true
}

// Commit makes the burst visible by one store of the used index, calls the
// guest at most once, and unlocks. An error, ErrPortFailed, means that nothing of
// the burst has arrived, also what Put had taken: the guest broke its ring later in
// the burst, or its memory vanished. The port stops, and has the reason.
func (q *RxQueue) Commit() error {
	err := ErrPortFailed
	if !q.failed {
		err = q.publish()
	}
	if err == nil {
		q.cnt.now[cRxFrames] += q.burst.frames
		q.cnt.now[cRxBytes] += q.burst.bytes
		q.cnt.now[cRxBuffers] += q.burst.buffers
		q.learn()
	}
	debug.SetPanicOnFault(q.oldFault)
	q.leave()
	return err
}

func (q *RxQueue) publish() (err error) {
	defer q.guard(&err)
	q.publishUsed()
	if q.waiting.n.Load() == 0 {
		q.writer.rest()
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
	n := q.writer.holds(q.budget)
	if n > 0 {
		n = max(1, min(n-q.hdrLen, MaxFrame))
	}
	if int64(n) != q.maxFrame.Load() {
		q.maxFrame.Store(int64(n))
	}
}

// Put copies one frame into guest buffers: all of it or nothing. The guest
// sees it after Commit. Between Begin and Commit only. The errors are
// ErrNoBuffers, ErrTooBig, ErrNotNegotiated, ErrBadFrame, ErrDamaged, ErrSource and ErrPortFailed. The frame may
// lie in another guest's memory: whoever calls keeps that mapped.
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
		q.burst.frames++
		q.burst.bytes += uint64(f.Len)
		q.burst.buffers += uint64(len(q.writer.taken))
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
	if len(f.Sums) > 0 && (len(f.Sums) != len(f.Frags)-1 || f.Copy == nil) {
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
	if q.flags&^h.Flags&virtio.HdrRSCInfo != 0 && h.GSOType != virtio.GSOUDPL4 { // where it is negotiated it is a duty (section 5.1.6.4.1)
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
	case virtio.GSOUDPL4:
		if !q.features.Has(virtio.FGuestUSO4) && !q.features.Has(virtio.FGuestUSO6) {
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

// put hands a frame to the writer. The ring stays as it was unless all of it fits.
func (q *RxQueue) put(f *virtio.Frame) (err error) {
	defer q.guardPut(f, &err)
	budget, pieces := q.size, 0
	if f.Hdr.GSOType != virtio.GSONone { // anything else cannot be cut
		budget, pieces = q.budget, maxSuperPieces
	}
	f.Hdr.Encode(q.hdr[:])
	var sum *summing
	if len(f.Sums) > 0 {
		sum = &q.sum
		sum.sums, sum.copy = f.Sums, f.Copy
	}
	switch err = q.writer.put(q.hdr[:q.hdrLen], f.Frags, f.Len, budget, pieces, sum); err {
	case nil:
		f.Hdr.NumBuffers = uint16(len(q.writer.taken))
		return nil
	case ErrNoBuffers, ErrTooBig, ErrDamaged:
		return err
	case errOverBudget:
		q.cnt.now[cRxOverBudget]++
		return ErrTooBig
	default:
		return q.fail(err)
	}
}

// guardPut is guard for what copies a frame. A fault in the frame itself is not this guest's: its sender has taken the memory away. Then the
// copy has not come to its end, so what it has written lies in buffers that the guest gets back unused.
func (q *RxQueue) guardPut(f *virtio.Frame, err *error) {
	r := recover()
	if r == nil {
		return
	}
	if at, fault := guestmem.FaultAt(r); fault && guestmem.Within(f.Frags, at) {
		q.writer.undo()
		*err = ErrSource
		return
	}
	*err = q.blame(r)
}

func (q *RxQueue) arm() (available bool, err error) {
	defer q.guard(&err)
	return q.writer.arm(), nil
}

// Walked returns how many pieces of descriptor chains Put has looked at since the last call, also in vain: what the
// shape of the guest's buffers costs. Between Begin and Commit only.
func (q *RxQueue) Walked() int {
	n := q.writer.walked
	q.writer.walked = 0
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
	q.flags = 0
	if r.Features.Has(virtio.FGuestCsum) {
		q.flags |= virtio.HdrNeedsCsum | virtio.HdrDataValid
	}
	if r.Features.Has(virtio.FRSCExt) {
		q.flags |= virtio.HdrRSCInfo
	}
	q.writer.start(r.Dev, rxShape(r.Features, r.Size))
	q.budget = min(q.port.cfg.MaxBuffers, r.Size)
	q.learn()
	q.start(r)
	return nil
}

// rxShape: num_buffers are the last two bytes of the header, where it is not the legacy one without them (section 5.1.6.1).
func rxShape(f virtio.Features, size int) receiveShape {
	s := receiveShape{most: 1, numBuffersAt: -1}
	if f.Has(virtio.FMrgRxbuf) {
		s.most = size
	}
	if f.HdrLen() == virtio.HdrSize {
		s.numBuffersAt = virtio.HdrSize - 2
	}
	return s
}

func (q *RxQueue) stopRing() (base vring.Position, err error) {
	if err := q.lock(); err != nil {
		return base, err
	}
	defer q.unlock()
	q.writer.stop()
	q.waiting.wake()
	return q.stop()
}
