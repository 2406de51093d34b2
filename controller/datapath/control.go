package datapath

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
)

// Errors of the methods that speak to a worker.
var (
	ErrStopped = errors.New("the worker has stopped")
	ErrStuck   = errors.New("the worker does not answer") // its memory must stay as it is
	ErrFault   = errors.New("internal fault")             // a panic; the worker has ended
	ErrNoPort  = errors.New("no such port")
)

// Bounds of a message to a worker. Bursts take microseconds.
const (
	answerWithin = 2 * time.Second
	answerAgain  = 20 * time.Millisecond // of one that did not answer the last time
)

// message is something to be done between two bursts.
type message struct {
	fn   func()
	done chan struct{}
}

// do runs fn on the worker between two bursts and waits for it. ErrStuck: fn may still run, later, so what it writes must not
// be read. A worker that did not answer the last time is not waited for as long: one that stands still must not stop those who
// look at all of them.
func (w *Worker) do(fn func()) error {
	if done, err := w.ahead(fn); done {
		return err
	}
	within := answerWithin
	if w.silent.Load() {
		within = answerAgain
	}
	c := message{fn: fn, done: make(chan struct{})}
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case w.cmds <- c:
	case <-w.dead:
		return w.gone()
	case <-timeout.C:
		return w.stuck()
	}
	w.Wake()
	select {
	case <-c.done:
		w.silent.Store(false)
		return nil
	case <-w.dead:
		select {
		case <-c.done: // carried out, and then the worker ended
			return nil
		default:
			return w.gone()
		}
	case <-timeout.C:
		return w.stuck()
	}
}

// Wake makes the worker do a step, in which it looks at its messages and at the guests that had no room. It never waits.
func (w *Worker) Wake() {
	one := [8]byte{1}
	_, _ = unix.Write(w.cfg.WakeFD, one[:]) // full counter: it is awake anyway
}

// ask is do for a question. The answer of a worker that did not give it in time is never looked at.
func ask[T any](w *Worker, fn func() T) (answer T, err error) {
	var a T
	if err := w.do(func() { a = fn() }); err != nil {
		return answer, err
	}
	return a, nil
}

// tell is do for an order that may fail.
func (w *Worker) tell(fn func() error) error {
	bad, err := ask(w, fn)
	return errors.Join(err, bad)
}

func (w *Worker) stuck() error {
	w.silent.Store(true)
	return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStuck)
}

// gone is why a worker whose goroutine has ended does not answer.
func (w *Worker) gone() error {
	if w.fault != nil {
		return w.fault
	}
	return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
}

// Fault is why the worker ended by itself, nil while it has not.
func (w *Worker) Fault() error {
	select {
	case <-w.dead:
		return w.fault
	default:
		return nil
	}
}

// Stop ends the worker: what it holds is delivered or counted, its guests are closed. nil: its goroutine has ended, and all
// that it was given may be closed; a worker that was never started, or has ended before, is no error. ErrStuck: it still
// runs, and nothing that it was given may be closed or unmapped.
func (w *Worker) Stop() error {
	if done, _ := w.ahead(w.closeGuests); done {
		return nil
	}
	err := w.do(func() { w.stopping = true })
	if errors.Is(err, ErrStuck) {
		return err
	}
	timeout := time.NewTimer(answerWithin)
	defer timeout.Stop()
	select {
	case <-w.dead:
	case <-timeout.C:
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStuck)
	}
	if w.fault != nil { // it could not: its goroutine is gone, so its ports are ours
		for _, p := range w.list {
			w.closeAfterFault(p)
		}
	}
	return nil
}

// closeAfterFault closes the guest of a worker that has ended by a fault. The guest may be what was at fault: then it stays
// as it is, and the other workers go on.
func (w *Worker) closeAfterFault(p *port) {
	defer func() {
		if r := recover(); r != nil {
			w.log.Error("guest: close", "port", p.Index, "err", fmt.Errorf("%w: %v", ErrFault, r))
		}
	}()
	w.closeGuest(p)
}

// Activity changes whenever the worker has moved something. Reading it does not wake the worker.
func (w *Worker) Activity() uint64 { return w.activity.Load() }

// Add makes a VM known, in place of the one that has its index. Its frames are dropped as port_down until StartPort.
func (w *Worker) Add(cfg PortConfig) error {
	return w.tell(func() error { return w.addPort(cfg) })
}

// Amend replaces what a VM is kept to, while it runs: MACs, Isolated, Host, Sources, TxRate and RxRate.
func (w *Worker) Amend(cfg PortConfig) error {
	return w.tell(func() error { return w.amendPort(cfg) })
}

// Remove forgets a VM; StopPort is part of it. An unknown index is no error.
func (w *Worker) Remove(index uint32) error {
	return w.do(func() { w.removePort(index) })
}

// StartPort gives a VM its guest, the sources that this worker reads, and its rules. The guest belongs to the worker from
// here on, also after an error.
func (w *Worker) StartPort(index uint32, g Guest, sources []Source, rules flowtable.PortConfig) error {
	taken := false
	err := w.tell(func() error {
		taken = true
		return w.startPort(index, g, sources, rules)
	})
	if (errors.Is(err, ErrStopped) || errors.Is(err, ErrFault)) && !taken { // the worker is gone: nobody else will
		_, bad := g.Close()
		err = errors.Join(err, bad)
	}
	return err
}

// StopPort delivers what is held for a VM, drops and counts what its guest has no room for, and closes the guest. A port that
// does not run is no error.
func (w *Worker) StopPort(index uint32) error {
	return w.do(func() { w.stopPort(index) })
}

// PausePort takes a VM's guest and sources away for a moment: until StartPort, or StopPort, what is held and what comes waits,
// within the bounds of a guest without room. A port that does not run is no error.
func (w *Worker) PausePort(index uint32) error {
	return w.do(func() { w.pausePort(index) })
}

// SetRules replaces a VM's rules. What is held under the old ones is delivered before it returns. A guest that was found to drop
// superframes is tried again.
func (w *Worker) SetRules(index uint32, rules flowtable.PortConfig) error {
	return w.tell(func() error { return w.setRules(index, rules) })
}

func (w *Worker) setRules(index uint32, rules flowtable.PortConfig) error {
	err := w.table.SetPort(index, rules, w.now)
	if p := w.port(index); p != nil {
		if err == nil {
			p.rules = rules
		}
		w.forgive(p)
	}
	w.flush()
	return err
}

// SetMulticast gives the worker the group frames of its interface, which another worker has read until now and reads no more.
func (w *Worker) SetMulticast(m Multicast) error {
	return w.do(func() { w.group, w.fdsStale = m, true })
}

// SetMTU replaces Config.MTU.
func (w *Worker) SetMTU(mtu int) error {
	return w.do(func() { w.cfg.MTU = mtu })
}

// SetOwn replaces Config.Own.
func (w *Worker) SetOwn(mac [macLen]byte) error {
	return w.do(func() { w.cfg.Own = mac })
}

// SetLate says whether frames that still come for a VM were on their way when its steering ended. They are counted as late.
func (w *Worker) SetLate(index uint32, late bool) error {
	return w.do(func() {
		if p := w.port(index); p != nil {
			p.late = late
		}
	})
}

// Drain takes what the NIC had received before a VM's steering was narrowed, at most one RX ring, and delivers it.
func (w *Worker) Drain() error {
	return w.do(w.drain)
}

// CheckGuest is why a VM's guest is finished, nil while it is not, or while there is none. With refresh the guest looks again at
// its interface, which has changed.
func (w *Worker) CheckGuest(index uint32, refresh bool) error {
	return w.tell(func() error {
		p := w.port(index)
		if p == nil || p.guest == nil {
			return nil
		}
		if p.err == nil {
			p.err = p.guest.Check(refresh)
		}
		return p.err
	})
}

// FinishGuest ends a VM's guest for a reason that the control side has: what waits for it and what still comes is dropped, and
// nothing more reaches it.
func (w *Worker) FinishGuest(index uint32, why error) error {
	return w.do(func() {
		if p := w.port(index); p != nil && p.guest != nil && p.err == nil {
			p.err = why
			w.flushPort(p)
		}
	})
}

// Senders returns the source addresses of the frames that came for a VM since the last call; see PortConfig.NoteSenders.
func (w *Worker) Senders(index uint32) ([][6]byte, error) {
	return ask(w, func() [][6]byte {
		if p := w.port(index); p != nil && p.senders != nil {
			return p.senders.take(nil)
		}
		return nil
	})
}
