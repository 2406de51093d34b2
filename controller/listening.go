package controller

import (
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

// Bounds of what listens to VMs. A listener costs its own memory, and a copy in the worker for each frame.
const (
	maxListening   = 16                     // in all
	maxListeningVM = 4                      // to one VM
	listenMemory   = 16 << 20               // bytes of frames that one keeps for its reader, on all queues of an uplink together
	listenLeast    = 1 << 20                // on each
	listenIdle     = 10 * time.Millisecond  // between two looks at the probes, in which there was nothing
	listenBusy     = time.Millisecond       // and in which there was something
	hushWithin     = 200 * time.Millisecond // for listeners to hear that a hand-over ends them
	listenMost     = 4096                   // records that are read between two looks at anything else
	listenChunk    = 64 << 10               // bytes that are written at once
)

// listening is one trace or capture under way: a probe on every worker of a VM's uplink, which the workers write and one
// goroutine, an HTTP handler's, reads. Nothing of the workers waits for it.
type listening struct {
	a      *attachment
	vm     string
	iface  string                 // its name when this began: an interface can be renamed
	probes []*datapath.Probe      // by queue
	told   atomic.Pointer[string] // why it is to end, nil while it may go on
	lost   uint64                 // told so far
	have   []bool                 // by queue: next is unread
	next   []datapath.ProbeRecord
}

// place is where the VM is: its socket, its tap.
func (a *attachment) place() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kind.to()
}

// listen puts a probe on every worker of a VM.
func (c *Controller) listen(what, vm string, cfg datapath.ProbeConfig) (*listening, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.findVM(vm)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	same := 0
	for l := range c.heard {
		if l.a == a {
			same++
		}
	}
	switch {
	case same >= maxListeningVM:
		return nil, fmt.Errorf("%s: VM %s: %w: %d traces and captures of it are under way: end one of them", what, vm, api.ErrBusy, same)
	case len(c.heard) >= maxListening:
		return nil, fmt.Errorf("%s: VM %s: %w: %d traces and captures are under way: end one of them", what, vm, api.ErrBusy, len(c.heard))
	}
	n := len(a.up.queues)
	l := &listening{a: a, vm: vm, iface: a.up.name, have: make([]bool, n), next: make([]datapath.ProbeRecord, n)}
	cfg.Memory = max(listenMemory/n, listenLeast)
	for _, q := range a.up.queues {
		p := datapath.NewProbe(cfg)
		if err := q.AddProbe(a.idx, p); err != nil {
			c.takeOff(l)
			return nil, fmt.Errorf("%s: VM %s: %w", what, vm, err)
		}
		l.probes = append(l.probes, p)
	}
	c.heard[l] = true
	c.heardSays(what+" begins", vm)
	return l, nil
}

// unlisten takes the probes off again.
func (c *Controller) unlisten(what string, l *listening) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.heard, l)
	c.takeOff(l)
	c.heardSays(what+" ends", l.vm)
}

// heardSays logs that somebody listens, or no longer: whoever may look may do that in a loop.
func (c *Controller) heardSays(what, vm string) {
	if left, ok := c.heardLimit.Allow(what); ok {
		c.log.Info(what, "vm", vm, "lines_left_out", left)
	}
}

// hush ends all traces and captures, and waits a moment for the words to be said.
func (c *Controller) hush(why string) {
	for end := time.Now().Add(hushWithin); ; time.Sleep(listenBusy) {
		c.mu.Lock()
		for l := range c.heard {
			l.told.Store(&why)
		}
		left := len(c.heard)
		c.mu.Unlock()
		if left == 0 || time.Now().After(end) {
			return
		}
	}
}

// takeOff removes the probes of a VM that is attached still: those of another have gone with it, and its workers may be gone. The
// caller holds mu.
func (c *Controller) takeOff(l *listening) {
	up := l.a.up
	if c.uplinks[up.name] != up || up.vms[l.vm] != l.a {
		return
	}
	for i, p := range l.probes {
		if err := up.queues[i].RemoveProbe(l.a.idx, p); err != nil && !errors.Is(err, datapath.ErrFault) {
			c.log.Warn("listener: taken off", "vm", l.vm, "err", err)
		}
	}
}

// take hands what the probes have to fn, the oldest first, and returns how much that was. Records of one queue are in order; two
// queues' are as far as both have been written.
func (l *listening) take(fn func(queue int, r *datapath.ProbeRecord) error) (n int, err error) {
	for n < listenMost {
		first := -1
		for i, p := range l.probes {
			if !l.have[i] {
				l.have[i] = p.Next(&l.next[i])
			}
			if l.have[i] && (first < 0 || l.next[i].Time < l.next[first].Time) {
				first = i
			}
		}
		if first < 0 {
			return n, nil
		}
		l.have[first] = false
		n++
		if err := fn(first, &l.next[first]); err != nil {
			return n, err
		}
	}
	return n, nil
}

// newlyLost is how many frames were not heard of since the last call.
func (l *listening) newlyLost() uint64 {
	all := uint64(0)
	for _, p := range l.probes {
		all += p.Lost()
	}
	n := all - l.lost
	l.lost = all
	return n
}

// ended is why nothing more will come, "" while something may.
func (l *listening) ended() string {
	for i, p := range l.probes {
		switch p.Ended() {
		case datapath.ProbePortGone:
			return fmt.Sprintf("VM %s was taken off %s: 'rscctl status' says whether it waits", l.vm, l.iface)
		case datapath.ProbeWorkerGone:
			return fmt.Sprintf("the worker of queue %d of %s has ended: 'rscctl status' shows it, the log says why", i, l.iface)
		}
	}
	return ""
}

// encoder writes what listeners hear as a client reads it. Each method appends to a buffer.
type encoder interface {
	record(b []byte, queue int, r *datapath.ProbeRecord) []byte
	lost(b []byte, n uint64) []byte
	end(b []byte, why string) []byte
}

// stream writes what is heard until the client goes, the controller stops, or there is nothing more to hear.
func (c *Controller) stream(w http.ResponseWriter, r *http.Request, l *listening, enc encoder, head []byte) {
	out := http.NewResponseController(w)
	send := func(b []byte) error {
		if _, err := w.Write(b); err != nil {
			return err
		}
		return out.Flush()
	}
	if send(head) != nil {
		return
	}
	b := make([]byte, 0, listenChunk+datapath.MaxSnapLen)
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		why := l.ended() // first: what was heard before is read below
		if s := l.told.Load(); s != nil {
			why = *s
		}
		n, err := l.take(func(queue int, rec *datapath.ProbeRecord) (err error) {
			if b = enc.record(b, queue, rec); len(b) >= listenChunk {
				_, err = w.Write(b)
				b = b[:0]
			}
			return err
		})
		if n == listenMost { // there is more
			why = ""
		}
		if r.Context().Err() != nil {
			why = "the controller stops" // or the client has gone, and does not hear it
		}
		if lost := l.newlyLost(); lost > 0 {
			b = enc.lost(b, lost)
		}
		if why != "" {
			b = enc.end(b, why)
		}
		if len(b) > 0 && err == nil {
			err = send(b)
			b = b[:0]
		}
		if err != nil || why != "" {
			return
		}
		pause := listenIdle
		if n > 0 {
			pause = listenBusy
		}
		look.Reset(pause)
		select {
		case <-look.C:
		case <-r.Context().Done():
		}
	}
}
