package vhost

import (
	"runtime/debug"

	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// TxQueue is a transmit virtqueue: frames from the guest.
type TxQueue struct {
	queue
	head int // Config.TxHead

	chain vring.Chain
	frame TxFrame
	buf   []byte       // header and frame of the chain in hand
	done  []vring.Used // chains taken and not yet published
	took  []taken      // the same chains
}

// taken is a chain that was taken: what it takes to give it back, and what is counted once it is not.
type taken struct {
	at    vring.Position
	drop  int // the counter of one that never got to the callback, negative for one that did
	bytes int // of its frame
}

// What ends a Poll, so that a guest with large frames or long chains does not
// keep a worker from the others.
const (
	maxPollBytes  = 512 << 10 // the weight of vhost-net (VHOST_NET_WEIGHT)
	maxPollPieces = 2048      // of descriptor chains; a TSO frame of a Linux guest has 18
)

// What a frame that never gets to the callback costs beside its pieces, in pieces: taking it off the ring, and its copy.
const (
	dropPieces = 8
	dropBytes  = 64 // bytes that are copied while a piece is looked at
)

// Next is what becomes of a frame that Poll hands out.
type Next uint8

const (
	TakeOn   Next = iota // it is taken, and the next one may come
	TakeLast             // it is taken, and is the last of this Poll
	Leave                // it stays in the queue, as does what follows
)

// Poll takes up to budget frames, and no more once they are 512 KiB, from the
// guest in order and hands each to fn;
// all that were taken are completed at the end by one store of the used index
// and at most one call. Just before that store before is called, unless it is nil
// or nothing was taken: what must have left this process when the guest, or a
// successor, believes that a frame was sent. It returns how many of the frames that fn took,
// the last ones, could not leave: they stay in the queue. Unusable frames are dropped and counted, as is everything
// on a queue that the guest has disabled. n counts all that were taken, walked
// the pieces of descriptor chains that were looked at, also in vain, and what took
// as long. The error is
// ErrPortFailed, or ErrNotRunning when there is nothing to poll. fn and before run
// with the queue locked: they may use other queues, not this one, and until before has returned the guest's memory stays mapped.
func (q *TxQueue) Poll(budget int, fn func(f *TxFrame) Next, before func() (back int)) (n, walked int, err error) {
	q.enter()
	defer q.leave()
	switch {
	case q.dev == nil:
		return 0, 0, ErrNotRunning
	case q.failed:
		return 0, 0, ErrPortFailed
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	q.done, q.took = q.done[:0], q.took[:0]
	for bytes := 0; len(q.done) < budget && bytes < maxPollBytes && walked < maxPollPieces; {
		got, drop, terr := q.take()
		if terr != nil {
			err = terr
			break
		}
		if !got {
			break
		}
		walked += q.chain.Walked()
		next, size := TakeOn, 0
		if drop >= 0 {
			walked += dropPieces + q.chain.ReadLen/dropBytes
		} else {
			size = q.chain.ReadLen - q.hdrLen
			next = fn(&q.frame)
		}
		if q.failed { // its memory vanished in fn
			err, next = ErrPortFailed, Leave
		}
		if next == Leave {
			q.dev.Rewind(q.chain.At)
			break
		}
		bytes += size
		q.done = append(q.done, vring.Used{Head: q.chain.Head})
		q.took = append(q.took, taken{q.chain.At, drop, size})
		if next == TakeLast {
			break
		}
	}
	// Also after a broken chain: what was sent must not be sent again by a guest
	// that reconnects and goes on at the used index.
	if len(q.done) > 0 {
		if before != nil {
			q.giveBack(before())
		}
		for _, t := range q.took {
			if t.drop >= 0 {
				q.cnt.now[t.drop]++
				continue
			}
			q.cnt.now[cTxFrames]++
			q.cnt.now[cTxBytes] += uint64(t.bytes)
		}
		if perr := q.publish(); err == nil {
			err = perr
		}
	}
	return len(q.done), walked, err
}

// giveBack leaves the last frames that fn took in the queue, and with them what was unusable in between.
func (q *TxQueue) giveBack(frames int) {
	if frames == 0 {
		return
	}
	keep := len(q.took)
	for ; frames > 0; keep-- {
		if q.took[keep-1].drop < 0 {
			frames--
		}
	}
	q.dev.Rewind(q.took[keep].at)
	q.done, q.took = q.done[:keep], q.took[:keep]
}

// take copies the next chain out of guest memory, or its beginning; drop is the counter of one that holds no frame for the callback,
// negative when it does.
func (q *TxQueue) take() (got bool, drop int, err error) {
	defer q.guard(&err)
	c := &q.chain
	ok, err := q.dev.Next(c)
	if err != nil {
		return false, 0, q.fail(err)
	}
	if !ok {
		return false, 0, nil
	}
	if c.WriteLen > 0 {
		q.dev.Fail(vring.ErrWritable)
		return false, 0, q.fail(vring.ErrWritable)
	}
	drop = -1
	switch n := c.ReadLen - q.hdrLen; {
	case !q.enabled: // a started queue is consumed even so
		drop = cTxDisabled
	case n < 0:
		drop = cTxBadHeader
	case n < minFrame:
		drop = cTxShort
	case n > MaxFrame:
		drop = cTxLong
	}
	if drop < 0 && !q.copyOut(c) {
		drop = cTxBadHeader
	}
	return true, drop, nil
}

// copyOut fills q.frame and judges its header: by the copy, which the guest
// cannot change any more.
func (q *TxQueue) copyOut(c *vring.Chain) bool {
	room := len(q.buf)
	if q.head > 0 {
		room = min(room, q.hdrLen+q.head)
	}
	n := 0
	rest := c.Readable
	for len(rest) > 0 {
		m := copy(q.buf[n:room], rest[0])
		n += m
		if m < len(rest[0]) {
			rest[0] = rest[0][m:] // the chain is read once
			break
		}
		rest = rest[1:]
	}
	q.frame = TxFrame{Data: q.buf[q.hdrLen:n], Rest: rest, queue: q}
	return q.frame.Hdr.Decode(q.buf[:q.hdrLen]) == nil &&
		virtio.CheckTx(&q.frame.Hdr, c.ReadLen-q.hdrLen, q.features) == nil
}

// whole copies what is left of the frame in hand.
func (q *TxQueue) whole(f *TxFrame) (err error) {
	defer q.guard(&err)
	for _, b := range f.Rest {
		f.Data = append(f.Data, b...) // within buf
	}
	f.Rest = nil
	return nil
}

// publish completes what was taken, in order: that is what lets a front-end that
// loses us go on at the used index without loss or repetition.
func (q *TxQueue) publish() (err error) {
	defer q.guard(&err)
	q.dev.Push(q.done)
	q.publishUsed()
	return nil
}

// ArmKick asks the guest for a kick when it sends and reports whether there is
// something to poll already.
func (q *TxQueue) ArmKick() (more bool) {
	q.enter()
	defer q.leave()
	if q.dev == nil || q.failed {
		return false
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	more, _ = q.notify(true)
	return more
}

// DisarmKick tells the guest that it need not kick: somebody polls.
func (q *TxQueue) DisarmKick() {
	q.enter()
	defer q.leave()
	if q.dev == nil || q.failed {
		return
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	_, _ = q.notify(false)
}

func (q *TxQueue) notify(on bool) (more bool, err error) {
	defer q.guard(&err)
	if on {
		return q.dev.EnableNotify(), nil
	}
	q.dev.DisableNotify()
	return false, nil
}

func (q *TxQueue) startRing(r user.RingSetup) error {
	if err := q.lock(); err != nil {
		return err
	}
	defer q.unlock()
	if q.buf == nil {
		q.buf = make([]byte, virtio.HdrSize+MaxFrame)
	}
	q.start(r)
	return nil
}

func (q *TxQueue) stopRing() (base vring.Position, err error) {
	if err := q.lock(); err != nil {
		return base, err
	}
	defer q.unlock()
	q.chain = vring.Chain{}
	return q.stop()
}
