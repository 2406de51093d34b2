package datapath

import "math/bits"

// A queue in front of a guest has places for outQueueLen frames, which is enough for what comes in a turn. A guest that is slow and gets its
// packets one by one needs as many as chunks may wait for it: what TCP sends on until it hears that the guest is slow is several times outQueueLen,
// and a packet that is dropped has to be sent again. Long rings are the worker's, and a queue has one while it waits: as what waits for all
// guests is bounded, so are the long rings that are out, however many guests have ever been slow.

// lengthen gives the queue of a guest that waits a long ring, unless it has one or may not have more frames anyway.
func (w *Worker) lengthen(p *port) {
	q, limit := p.out, w.waitLimit()
	if q.short != nil || limit <= len(q.frames) {
		return
	}
	var long []outFrame
	if n := len(w.longRings); n > 0 {
		long = w.longRings[n-1]
		w.longRings = w.longRings[:n-1]
	} else { // no more than a few times in a worker's life
		long = make([]outFrame, 1<<bits.Len(uint(w.cfg.Chunks/4-1)))
	}
	for i := range q.n { // the slices of both stay where they have been grown
		long[i].swap(q.at(i))
	}
	q.short, q.frames, q.most, q.head = q.frames, long, len(long), 0
}

// shorten takes the long ring of an empty queue back.
func (w *Worker) shorten(q *outQueue) {
	if q.short == nil || q.n > 0 {
		return
	}
	w.longRings = append(w.longRings, q.frames)
	q.frames, q.most, q.short, q.head = q.short, len(q.short), nil, 0
}
