package datapath

import "golang.org/x/sys/unix"

// busyPolling is when a worker that polls instead of sleeping had something to do last.
type busyPolling struct {
	seen uint64 // activity
	at   int64  // ns, by the worker's clock
}

// busyPoll has the driver look for frames at once, while there was something to do a moment ago. It reports whether it did, so that
// the worker need not sleep. Kicks and messages are seen meanwhile as in any busy turn.
func (w *Worker) busyPoll() bool {
	if w.cfg.BusyPoll <= 0 || w.nicBroken {
		return false
	}
	if seen := w.activity.Load(); seen != w.polling.seen {
		w.polling = busyPolling{seen, w.clock()}
	} else if w.clock()-w.polling.at >= w.cfg.BusyPoll {
		return false
	}
	w.nic.BusyPoll()
	return true
}

// bindThread keeps the worker's thread on the CPUs that it was given. One that the system has taken away meanwhile is no reason to
// serve no VM.
func (w *Worker) bindThread() {
	if len(w.cfg.CPUs) == 0 {
		return
	}
	var set unix.CPUSet
	for _, cpu := range w.cfg.CPUs {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		w.log.Warn("worker: not bound to its CPUs", "cpus", w.cfg.CPUs, "err", err)
	}
}
