package controller

import "time"

// Bounds of the pauses between two tries to attach a VM again.
const (
	firstPause = time.Second
	lookPause  = 5 * time.Second  // at most, where a try only looks: the VM's tap is not there, nothing was changed
	deepPause  = time.Minute      // at most, where a try puts XDP on the interface and takes it off again: the link may flap each time
	newsPause  = time.Second / 4  // at least, also when something has changed that may help
	settled    = 60 * time.Second // a VM that stayed attached for so long starts anew
)

// retry is what is known of a VM that was attached and is not, or was not a moment ago.
type retry struct {
	tried    time.Time
	due      time.Time
	pause    time.Duration
	looked   bool      // the last try changed nothing of the host
	attached time.Time // when it was attached again
}

// retries is by VM. The zero value is not usable. Guarded by the controller's lock.
type retries map[string]*retry

func (r retries) of(vm string) *retry {
	if r[vm] == nil {
		r[vm] = &retry{}
	}
	return r[vm]
}

// asleep notes that a VM was taken off. It is tried at once, unless it had only just been attached again. deep tells that the
// interface was given back, so that a try puts XDP on it anew.
func (r retries) asleep(vm string, deep bool, now time.Time) {
	e := r.of(vm)
	e.tried, e.looked = now, !deep
	switch recent := !e.attached.IsZero() && now.Sub(e.attached) < settled; {
	case !recent:
		e.pause, e.due = 0, now
	case deep:
		e.longer(deepPause, now)
	default:
		e.pause, e.due = firstPause, now.Add(firstPause)
	}
}

// failed notes a try. looked tells that nothing of the host was changed.
func (r retries) failed(vm string, looked bool, now time.Time) {
	e := r.of(vm)
	e.tried, e.looked = now, looked
	if looked {
		e.longer(lookPause, now)
	} else {
		e.longer(deepPause, now)
	}
}

func (e *retry) longer(most time.Duration, now time.Time) {
	e.pause = min(max(2*e.pause, firstPause), max(most, e.pause))
	e.due = now.Add(e.pause)
}

// succeeded notes that a VM is attached.
func (r retries) succeeded(vm string, now time.Time) {
	if e := r[vm]; e != nil {
		e.attached = now
	}
}

// ready tells whether it is time to try.
func (r retries) ready(vm string, now time.Time) bool {
	e := r[vm]
	return e == nil || !now.Before(e.due)
}

// next is when a VM is tried next, zero for within a second.
func (r retries) next(vm string, now time.Time) (at time.Time) {
	if e := r[vm]; e != nil && e.due.Sub(now) > time.Second {
		at = e.due
	}
	return at
}

// again makes all be tried at once: an operator says that it is worth it.
func (r retries) again(now time.Time) {
	for _, e := range r {
		e.due = now
	}
}

// news makes those be tried that only looked: an interface has changed.
func (r retries) news(now time.Time) {
	for _, e := range r {
		if soon := e.tried.Add(newsPause); e.looked && soon.Before(e.due) {
			e.due = soon
		}
	}
}
