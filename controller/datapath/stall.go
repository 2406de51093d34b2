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
	stallTurn   = time.Millisecond     // a step that takes longer makes the worker wary: from then on it looks who it was
	stallSteps  = 1024                 // after so many it counts its waits: many short ones make it wary too
	stallSlack  = 64                   // waits in those that nobody is asked about
	stallLook   = 5 * time.Microsecond // what is shorter has not slept
	stallLong   = time.Millisecond     // a burst that has taken so long ends, and is booked
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

// waits is what the kernel has counted of the worker's thread.
type waits struct {
	sleeps int64 // times that it gave up its processor to wait for something: in a page fault, in ppoll, parked by the Go runtime
	faults int64 // page faults
	cpu    int64 // ns of processor time, its own and the kernel's for it
}

// touch is the beginning of an access to a VM's memory.
type touch struct {
	at     int64 // by the worker's clock; negative: nobody looks
	booked int64 // Worker.booked then: an access may have another VM's within
}

// resting says that a VM's memory is not to be touched now.
func (w *Worker) resting(p *port) bool { return p.stall.until > w.now }

// stepBegins and stepEnds find out whether somebody makes the worker wait, at the cost of two looks at the clock.
func (w *Worker) stepBegins() {
	w.stepAt = w.clock()
	if w.wary {
		w.known = w.waits()
	}
}

func (w *Worker) stepEnds() {
	if w.wary {
		return
	}
	w.wary = w.slow(w.stepAt)
	if w.turn%stallSteps == 0 {
		n := w.waits()
		w.wary = w.wary || w.known.sleeps != 0 && n.sleeps-w.known.sleeps > w.polls+stallSlack
		w.known, w.polls = n, 0
	}
}

// slow says that what began then has taken so long that somebody may have made the worker wait.
func (w *Worker) slow(began int64) bool { return w.clock()-began > stallTurn.Nanoseconds() }

// eachSource runs fn, which touches a ring, on every source of the VMs that do not rest. It is for what is no step.
func (w *Worker) eachSource(fn func(e *egress)) {
	began := w.clock()
	for _, e := range w.egress {
		if w.resting(e.port) {
			continue
		}
		from := w.touching()
		fn(e)
		w.touched(e.port, from)
	}
	w.wary = w.wary || w.slow(began)
}

// touching is called before a VM's memory is touched, and touched behind it, with what touching returned.
func (w *Worker) touching() touch {
	if !w.wary {
		return touch{at: -1}
	}
	return touch{w.clock(), w.booked}
}

// long says that it has taken long already: then let the others have their turn, and book it.
func (w *Worker) long(t touch) bool {
	return t.at >= 0 && w.clock()-t.at >= stallLong.Nanoseconds()
}

func (w *Worker) touched(p *port, t touch) {
	if t.at < 0 {
		return
	}
	now := w.clock()
	if took := now - t.at; took >= stallLook.Nanoseconds() {
		w.mayHaveSlept(p, now, took-(w.booked-t.booked))
	}
}

// mayHaveSlept books an access in which the worker slept and had a page fault. Without a fault it was not the memory: a thread that is
// preempted does not count as asleep, but one that the Go runtime parks does.
func (w *Worker) mayHaveSlept(p *port, now, took int64) {
	n := w.waits()
	slept := n.sleeps != w.known.sleeps && n.faults != w.known.faults
	if w.known = n; !slept {
		return
	}
	took = max(took, 0)
	w.booked += took
	if w.lender != nil {
		w.setApart(p, w.lender, now+took*stallShare)
		return
	}
	p.cnt.StalledNS += uint64(took)
	s := &p.stall
	s.debt = max(0, s.debt-(now-s.paid)/stallShare) + took
	s.paid = now
	if over := s.debt - stallCredit.Nanoseconds(); over > 0 {
		s.until = now + min(over*stallShare, restMost.Nanoseconds())
		p.cnt.Rests++
	}
}

// setApart books a sleep in a copy from one VM's memory into another's. Nobody knows whose it was, so it is neither's debt: frames between
// them are copied in two steps for so long that such sleeps stay within the share too, and then it shows.
func (w *Worker) setApart(p, q *port, until int64) {
	p.apart, q.apart = max(p.apart, until), max(q.apart, until)
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

// threadWaits asks the kernel about the calling thread (getrusage(2), RUSAGE_THREAD). A fault that waited counts as a major one.
func threadWaits() waits {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return waits{}
	}
	return waits{u.Nvcsw, u.Minflt + u.Majflt, u.Utime.Nano() + u.Stime.Nano()}
}
