package vhost

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Waiter is a data goroutine that sleeps until a guest has posted receive
// buffers. Several goroutines may deliver into one queue, where a NIC has more
// queues than the guest; its kick is one descriptor, and whoever takes the kick
// off it takes it from the others too. So the goroutine that took it wakes them:
//
//   - Put finds too few buffers: call Await before Commit. If it returns true,
//     buffers have arrived, so try again instead of sleeping.
//   - Sleep with KickFD in the poll set, for as long as it takes: there is no need
//     to look now and then. A guest that is paused costs nothing.
//   - Woken by KickFD: Forget the own waiter, AckKick, try again. Woken by Wake:
//     try again.
//   - With nothing to deliver any more: Forget.
type Waiter struct {
	// Wake is called once for each Await that returned false, when it is worth
	// trying again: a kick was taken, or the queue has stopped. Any goroutine may
	// call it, with locks held: it must not wait and must not use the queue. Adding
	// to an eventfd in the sleeper's poll set is what it is for.
	Wake func()
}

// waiters are those of one queue.
type waiters struct {
	n  atomic.Int32 // in list
	mu sync.Mutex   // held for a moment, never while guest memory is touched
	// list has each waiter at most once.
	list []*Waiter
}

func (l *waiters) add(w *Waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.list, w) {
		l.list = append(l.list, w)
		l.n.Store(int32(len(l.list)))
	}
}

func (l *waiters) remove(w *Waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.list, w); i >= 0 {
		l.list = slices.Delete(l.list, i, i+1) // leaves no pointer behind
		l.n.Store(int32(len(l.list)))
	}
}

// wake wakes all and forgets them.
func (l *waiters) wake() {
	if l.n.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.list {
		l.list[i] = nil
		w.Wake()
	}
	l.list = l.list[:0]
	l.n.Store(0)
}

// Await asks the guest for a kick when it posts buffers and reports whether some
// have arrived since a Put last found too few (or, without such a Put, whether there
// are any): then retry instead of going to sleep. After false w is woken. See Waiter.
// Between Begin and Commit only.
func (q *RxQueue) Await(w *Waiter) (available bool) {
	q.waiting.add(w) // first: a kick that comes now must find it
	if q.failed {
		return false // the port stops, and w is woken with it
	}
	if available, _ = q.arm(); available {
		q.waiting.remove(w)
	}
	return available
}

// Forget takes back an Await.
func (q *RxQueue) Forget(w *Waiter) { q.waiting.remove(w) }

// AckKick takes a kick off KickFD and wakes the others who wait for it. It never
// waits.
func (q *RxQueue) AckKick() {
	q.queue.AckKick()
	q.waiting.wake()
}
