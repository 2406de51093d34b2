package user

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ringerCalls is how many eventfds may wait for one ringer: more than a front-end has rings.
const ringerCalls = 512

// How long a ringer rests after a call: a multiple of the CPU time that was over the allowance, and no longer than this.
const (
	ringerRest    = 16
	ringerLongest = time.Second
)

// errRingerBusy: the peer holds the ringer, and has made it new eventfds since.
var errRingerBusy = errors.New("call: earlier calls wait for the peer")

// ringer adds to eventfds by plain write(2), on a goroutine of its own. The open
// file is the peer's: nothing that we set on it stays set, so any such write may
// wait for as long as the peer likes. Here it holds this goroutine, which serves
// one front-end and which nobody waits for. One that takes much CPU time makes the
// goroutine rest, so that a peer does not get a core of ours for nothing.
//
// Safe for concurrent use but for close.
type ringer struct {
	calls  chan duty
	quit   chan struct{}
	wg     sync.WaitGroup
	broken atomic.Bool

	mu  sync.Mutex
	now int // what is being written to, -1 for nothing
}

// duty is one call to make.
type duty struct {
	e  *EventFD
	fd int // a duplicate of our own, so that e may be closed meanwhile
}

func newRinger() *ringer {
	r := &ringer{calls: make(chan duty, ringerCalls), quit: make(chan struct{}), now: -1}
	r.wg.Go(r.run)
	return r
}

// call sees to it that something is added to e after now. It does not wait.
func (r *ringer) call(e *EventFD) error {
	if r.broken.Load() {
		return ErrInternal
	}
	if e.waits.Swap(true) {
		return nil // it will be, and the peer needs no more than that
	}
	fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		e.waits.Store(false)
		return fmt.Errorf("call: %w", err)
	}
	select {
	case r.calls <- duty{e, fd}:
		return nil
	default:
		e.waits.Store(false)
		return errors.Join(errRingerBusy, unix.Close(fd))
	}
}

func (r *ringer) run() {
	defer func() {
		if recover() != nil { // a mistake of ours costs this port its calls, which are counted
			r.broken.Store(true)
		}
	}()
	for {
		select {
		case c := <-r.calls:
			c.e.waits.Store(false) // before the write: a call from here on is a new one
			r.set(c.fd)
			cost := c.e.cost.ofCall(func() {
				_ = (&EventFD{fd: c.fd}).Signal() // the peer's file, and the peer's loss
			})
			r.set(-1)
			_ = unix.Close(c.fd)
			r.rest(min(ringerRest*cost, ringerLongest))
		case <-r.quit:
			return
		}
	}
}

// rest lets time pass, but does not keep close waiting.
func (r *ringer) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.quit:
	}
}

func (r *ringer) set(fd int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = fd
}

// close ends the goroutine. A write that waits is let go by emptying the counter
// under it, as often as the peer fills it again. Nobody may call any more.
func (r *ringer) close() {
	close(r.quit)
	ended := make(chan struct{})
	go func() {
		r.wg.Wait()
		close(ended)
	}()
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		select {
		case <-ended:
			for len(r.calls) > 0 {
				_ = unix.Close((<-r.calls).fd)
			}
			return
		case <-time.After(pause):
			r.mu.Lock()
			if r.now >= 0 {
				(&EventFD{fd: r.now}).Drain()
			}
			r.mu.Unlock()
		}
	}
}
