package vhost

// RxQueue is a receive virtqueue: frames to the guest.
type RxQueue struct{}

// Begin locks the queue for a burst. It returns false, and leaves the queue
// unlocked, when it is not running and enabled. After true, Commit must follow
// on the same goroutine.
func (q *RxQueue) Begin() bool { return false }

// Put copies one frame into guest buffers: all of it or nothing. The guest
// sees it after Commit. The errors are ErrNoBuffers, ErrTooBig,
// ErrNotNegotiated, ErrBadFrame and ErrPortFailed.
func (q *RxQueue) Put(f *Frame) error { return nil }

// ArmKick asks the guest for a kick when it posts buffers and reports whether
// some have arrived since the last Put found too few: then retry instead of
// waiting. Between Begin and Commit only.
func (q *RxQueue) ArmKick() (available bool) { return false }

// Commit makes the burst visible by one store of the used index, calls the
// guest at most once, and unlocks.
func (q *RxQueue) Commit() {}

// KickFD is the eventfd that the guest kicks, -1 if there is none. It stays
// open from Hooks.Started until Hooks.BeforeStop has returned.
func (q *RxQueue) KickFD() int { return -1 }

// AckKick takes a kick off KickFD. It never waits.
func (q *RxQueue) AckKick() {}

// Counters returns a snapshot.
func (q *RxQueue) Counters() Counters { return Counters{} }
