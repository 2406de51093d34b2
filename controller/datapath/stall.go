package datapath

import (
	"time"

	"golang.org/x/sys/unix"
)

// A VM's memory is its process's file, and a page fault in it can make the worker sleep: while the process punches a hole into the
// file (mm/shmem.c, shmem_falloc_wait: 180 ms for each GiB that it frees, again and again), while the host swaps. All VMs of the
// queue wait with it. Nothing keeps a fault from waiting, so a VM whose memory made the worker sleep rests afterwards: what comes
// for it waits or is dropped as for a guest without buffers, and what it sends stays in its ring.
//
// Over time a VM may cost a stallShare-th of the worker's, and stallCredit beyond that at once.
const (
	stallTurn   = time.Millisecond       // a step that takes longer makes the worker wary: from then on it looks who it was
	stallSteps  = 1024                   // after so many it counts its sleeps: many short ones make it wary too
	stallSlack  = 64                     // sleeps in those that nobody is asked about: locks, the runtime
	stallLeast  = 100 * time.Microsecond // what is shorter is not looked at
	stallLong   = time.Millisecond       // a burst that has taken so long ends, and is booked
	stallCredit = 100 * time.Millisecond
	stallShare  = 20
	restMost    = time.Minute
)

// stall is the account of what a VM's memory costs.
type stall struct {
	debt  int64 // ns that the worker slept, less what is paid back
	paid  int64 // when it was last paid back, by the worker's clock
	until int64 // the VM rests until then
}

// resting says that a VM's memory is not to be touched now.
func (w *Worker) resting(p *port) bool { return p.stall.until > w.now }

// stepBegins and stepEnds find out whether somebody makes the worker wait, at the cost of two looks at the clock.
func (w *Worker) stepBegins() {
	w.stepAt = w.clock()
	if w.wary {
		w.slept = w.sleeps()
	}
}

func (w *Worker) stepEnds() {
	if w.wary {
		return
	}
	w.wary = w.clock()-w.stepAt > stallTurn.Nanoseconds()
	if w.turn%stallSteps == 0 {
		n := w.sleeps()
		w.wary = w.wary || w.slept != 0 && n-w.slept > w.polls+stallSlack
		w.slept, w.polls = n, 0
	}
}

// touching is called before a VM's memory is touched, and touched behind it, with what touching returned.
func (w *Worker) touching() (from int64) {
	if !w.wary {
		return -1
	}
	return w.clock()
}

// long says that it has taken long already: then let the others have their turn, and book it.
func (w *Worker) long(from int64) bool {
	return from >= 0 && w.clock()-from >= stallLong.Nanoseconds()
}

func (w *Worker) touched(p *port, from int64) {
	if from < 0 {
		return
	}
	now := w.clock()
	if took := now - from; took >= stallLeast.Nanoseconds() {
		w.tookLong(p, now, took)
	}
}

// tookLong books a touch that took long, if the worker slept in it. It may have been preempted too, which is nobody's fault: the
// kernel counts the one as a voluntary switch and the other not.
func (w *Worker) tookLong(p *port, now, took int64) {
	n := w.sleeps()
	slept := n != w.slept
	if w.slept = n; !slept {
		return
	}
	p.cnt.StalledNS += uint64(took)
	s := &p.stall
	s.debt = max(0, s.debt-(now-s.paid)/stallShare) + took
	s.paid = now
	if over := s.debt - stallCredit.Nanoseconds(); over > 0 {
		s.until = now + min(over*stallShare, restMost.Nanoseconds())
	}
}

// restLeft is how long until the first of the resting VMs with something to do may go on, negative when there is none. It goes by
// the time by which resting judges: a VM that was passed over must not be slept over.
func (w *Worker) restLeft() time.Duration {
	left := time.Duration(-1)
	if !w.wary {
		return left
	}
	for _, p := range w.list {
		if d := time.Duration(p.stall.until - w.now); d > 0 && (p.out.n > 0 || len(p.sources) > 0) && (left < 0 || d < left) {
			left = d
		}
	}
	return left
}

// threadSleeps counts how often the calling thread has given up its processor to wait for something.
func threadSleeps() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0
	}
	return u.Nvcsw
}
