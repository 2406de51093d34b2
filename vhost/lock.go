package vhost

import (
	"fmt"
	"sync/atomic"
	"time"
)

// stuckAfter is how long the control side waits for a data goroutine to end its
// burst. Bursts take microseconds; the front-end's main loop stands still
// meanwhile.
const stuckAfter = 2 * time.Second

// enter takes the queue for a burst.
func (q *queue) enter() {
	q.mu.Lock()
	q.bursts.Store(q.bursts.Load() + 1) // one writer: whoever has mu
}

// leave ends a burst.
func (q *queue) leave() {
	q.cnt.tell()
	q.bursts.Store(q.bursts.Load() + 1)
	q.mu.Unlock()
}

// claim is the control side waiting for mu in a goroutine of its own. It is a
// Lock and not a loop of TryLock, which would get no turn against a busy data
// goroutine; and as a Lock cannot be given up, the claim can: then whoever comes
// next takes it up again, or the goroutine gives mu back at once. So a queue has
// one such goroutine at most, however often the control side asks.
type claim struct {
	state atomic.Int32
	got   chan struct{} // closed when mu is the claimant's
}

// States of a claim. It is done when its goroutine has ended.
const (
	claimWanted = iota
	claimGivenUp
	claimDone
)

func (q *queue) claim() *claim {
	c := &claim{got: make(chan struct{})}
	go func() {
		q.mu.Lock()
		for {
			if c.state.CompareAndSwap(claimWanted, claimDone) {
				close(c.got)
				return
			}
			if c.state.CompareAndSwap(claimGivenUp, claimDone) {
				q.mu.Unlock()
				return
			}
		}
	}()
	return c
}

// lock takes mu for the control goroutine. It gives up with ErrQueueStuck when a
// data goroutine does not end its burst.
func (q *queue) lock() error {
	if q.mu.TryLock() {
		return nil
	}
	c := q.late
	q.late = nil
	if c == nil || !c.state.CompareAndSwap(claimGivenUp, claimWanted) {
		c = q.claim()
	}
	t := time.NewTimer(stuckAfter)
	defer t.Stop()
	select {
	case <-c.got:
		return nil
	case <-t.C:
	}
	if !c.state.CompareAndSwap(claimWanted, claimGivenUp) {
		<-c.got // it came in between
		return nil
	}
	q.late = c
	return fmt.Errorf("%s: %w", q.name, ErrQueueStuck)
}

// unlock ends what lock began.
func (q *queue) unlock() {
	q.cnt.tell()
	q.mu.Unlock()
}
