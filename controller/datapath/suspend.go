package datapath

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
)

// settlePause is how long Suspend waits between two looks at guests without room.
const settlePause = 200 * time.Microsecond

// Suspend makes the worker take nothing more: what comes waits in the NIC's rings and in the virtqueues. What it holds it delivers,
// waiting at most so long for guests that have no room. It goes on answering messages. Resume ends that; Stop may follow, and then
// another process may go on with the same rings.
func (w *Worker) Suspend(within time.Duration) error {
	err := w.do(func() {
		w.suspended = true
		w.table.Close(flowtable.ReasonStop, w.now)
		w.flush()
		_ = w.nic.Flush()
	})
	for end := time.Now().Add(within); err == nil; time.Sleep(settlePause) {
		var left int
		left, err = ask(w, w.unsettled)
		if left == 0 || time.Now().After(end) {
			break
		}
	}
	return err
}

// Resume ends Suspend, or Config.Suspended: a worker that was not started is. It looks at every ring once: signs of what came meanwhile may
// have been taken.
func (w *Worker) Resume() error {
	err := w.do(func() { w.suspended = false })
	if err == nil {
		w.Start()
	}
	return err
}

// ahead runs fn, at once, on a worker that begins suspended and was not started: nobody else uses what is its. done: the worker was not
// started. Error: ErrStopped, and fn did not run.
func (w *Worker) ahead(fn func()) (done bool, err error) {
	if w.started.Load() {
		return false, nil
	}
	w.starting.Lock()
	defer w.starting.Unlock()
	switch {
	case w.started.Load():
		return false, nil
	case !w.cfg.Suspended:
		return true, fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	}
	w.now = w.clock()
	fn()
	return true, nil
}

// unsettled is how many frames wait for guests that may still take them.
func (w *Worker) unsettled() (n int) {
	w.turn++
	w.flush()
	for _, p := range w.list {
		if p.guest != nil && p.err == nil {
			n += p.out.n
		}
	}
	return n
}

// rest is wait for a worker that is suspended: only a message wakes it.
func (w *Worker) rest() {
	w.fds = append(w.fds[:0], unix.PollFd{Fd: int32(w.cfg.WakeFD), Events: unix.POLLIN})
	w.fdsStale = true
	w.polls++
	if n, err := unix.Ppoll(w.fds, nil, nil); err == nil && n > 0 {
		var b [8]byte
		_, _ = unix.Read(w.cfg.WakeFD, b[:])
	}
}
