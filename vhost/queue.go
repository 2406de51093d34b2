package vhost

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// queue is what both directions share. mu is held by a data goroutine for a
// burst and by the control goroutine to start, stop or switch the ring; it
// guards everything but the atomics, sighted, and late, which is the control
// goroutine's.
type queue struct {
	port *Port
	name string // "rx queue 0"

	mu       sync.Mutex
	dev      vring.Device // nil while stopped
	size     int
	features virtio.Features
	hdrLen   int
	enabled  bool
	failed   bool // until the ring stops
	call     *user.EventFD
	owesCall bool // a call was due and could not be made
	cnt      counts
	callCost *user.Meter // of whatever eventfd the front-end gives the ring
	kickCost *user.Meter

	bursts  atomic.Uint64                // begun and ended: odd while one is under way
	sighted sighting                     // by State, under the port's lock
	late    *claim                       // of the control side, given up and not yet over
	running atomic.Bool                  // dev is there
	active  atomic.Bool                  // running and enabled, for Pairs and State
	kick    atomic.Pointer[user.EventFD] // read without mu, by pollers
}

// KickFD is the eventfd that the guest kicks, -1 if there is none. It stays
// open from Hooks.Started until Hooks.BeforeStop has returned.
func (q *queue) KickFD() int { return q.kick.Load().FD() }

// AckKick takes a kick off KickFD. It never waits.
func (q *queue) AckKick() {
	q.kick.Load().Drain()
}

// start runs the ring: the last step of a start, which cannot fail. The caller holds mu.
func (q *queue) start(r user.RingSetup) {
	q.dev, q.size, q.features, q.hdrLen = r.Dev, r.Size, r.Features, r.Features.HdrLen()
	q.enabled, q.failed, q.owesCall = r.Enabled, false, false
	q.call = r.Call
	r.Call.ChargeTo(q.callCost)
	r.Kick.ChargeTo(q.kickCost)
	q.kick.Store(r.Kick)
	q.running.Store(true)
	q.active.Store(q.enabled)
	if r.Rejoined {
		q.greet()
	}
}

// greet makes up for what a device before may have left undone: the guest looks at its ring, and so does whoever polls ours. The
// caller holds mu.
func (q *queue) greet() {
	q.signal()
	if kick := q.kick.Load(); kick != nil {
		_ = q.port.caller.Call(kick) // the next kick of the guest's does the same
	}
}

// stop ends the ring. Between bursts nothing is taken and not published, so the
// device's base is where a successor goes on. The kick eventfd stays readable
// for pollers until the control side is done with BeforeStop. The queue's hold on
// the guest's memory ends here, once no slice of it is left. The caller holds mu.
func (q *queue) stop() (base vring.Position, err error) {
	if q.dev == nil {
		return base, nil
	}
	dev := q.dev
	base = dev.Base()
	q.dev, q.call, q.failed = nil, nil, false
	q.running.Store(false)
	q.active.Store(false)
	q.kick.Store(nil)
	return base, dev.Close()
}

// setCall replaces the eventfd and makes up for a call that was due meanwhile.
// The caller holds mu.
func (q *queue) setCall(call *user.EventFD) {
	q.call = call
	call.ChargeTo(q.callCost)
	byHand := !q.port.caller.Asynchronous() || q.callCost.Over() // then the last call may still be on its way to the old one
	if call != nil && (q.owesCall || byHand) {
		q.signal()
	}
}

// publishUsed makes a burst visible and interrupts the guest if it has to be. The caller holds mu.
func (q *queue) publishUsed() {
	if q.dev.Publish() || q.owesCall && q.call != nil {
		q.signal()
	}
}

// signal interrupts the guest, without waiting.
func (q *queue) signal() {
	if q.call == nil {
		q.owesCall = true
		return
	}
	if err := q.port.caller.Call(q.call); err != nil {
		q.cnt.now[cCallsLost]++
		q.owesCall = true // the ring asks for no other: try again with the next burst
		return
	}
	q.owesCall = false
	q.cnt.now[cCalls]++
}

// fail stops this queue for good and asks the control goroutine to end the
// connection. The caller holds mu. The text must hold nothing of the guest's.
func (q *queue) fail(err error) error {
	if !q.failed {
		q.failed = true
		q.port.fail(fmt.Errorf("%s: %w", q.name, err))
	}
	return ErrPortFailed
}

// guard is deferred around everything that touches guest memory. The runtime
// turns SIGBUS and SIGSEGV there into a panic with an address, given
// debug.SetPanicOnFault; any other panic is a mistake of ours that a guest
// has found. Either way only this port stops.
func (q *queue) guard(err *error) {
	if r := recover(); r != nil {
		*err = q.blame(r)
	}
}

// blame ends the port for what recover has returned.
func (q *queue) blame(r any) error {
	if guestmem.IsFault(r) {
		return q.fail(ErrMemoryFault)
	}
	return q.fail(user.FaultError(r))
}

// Counters returns a snapshot, as of the last burst. It waits for nobody.
func (q *queue) Counters() Counters {
	var n [numCounters]uint64
	q.addTo(&n)
	return named(&n)
}

// addTo adds the counters to sum. It waits for nobody; each counter is exact, as of the last burst.
func (q *queue) addTo(sum *[numCounters]uint64) {
	q.cnt.addTo(sum)
	sum[cSpared] += q.callCost.Spared() + q.kickCost.Spared()
}
