package vhost

// TxQueue is a transmit virtqueue: frames from the guest.
type TxQueue struct{}

// Poll takes up to budget frames from the guest in order and hands each to fn;
// all that were taken are completed at the end by one store of the used index
// and at most one call. If fn returns true, its frame and what follows stay in
// the queue. Unusable frames are dropped and counted, as is everything on a
// queue that the guest has disabled. n counts all that were taken. The error is
// ErrPortFailed, or ErrNotRunning when there is nothing to poll. fn runs with
// the queue locked: it may use other queues' Begin, not this one.
func (q *TxQueue) Poll(budget int, fn func(f *TxFrame) (stop bool)) (n int, err error) {
	return 0, nil
}

// ArmKick asks the guest for a kick when it sends and reports whether there is
// something to poll already.
func (q *TxQueue) ArmKick() (more bool) { return false }

// DisarmKick tells the guest that it need not kick: somebody polls.
func (q *TxQueue) DisarmKick() {}

// KickFD is the eventfd that the guest kicks, -1 if there is none. It stays
// open from Hooks.Started until Hooks.BeforeStop has returned.
func (q *TxQueue) KickFD() int { return -1 }

// AckKick takes a kick off KickFD. It never waits.
func (q *TxQueue) AckKick() {}

// Counters returns a snapshot.
func (q *TxQueue) Counters() Counters { return Counters{} }
