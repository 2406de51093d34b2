package stackguest

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Frames of one direction moved before the other gets its turn. Receive is the direction under load.
const (
	rxBudget = 64
	txBudget = 64
)

// Positions in the poll set.
const (
	fdTap = iota
	fdRxCall
	fdTxCall
	fdStop
	numFDs
)

// pair is one queue pair and the tap queue it serves. Only its loop touches it.
type pair struct {
	rx     rxRing
	tx     txRing
	tap    int
	rxCall int // eventfds the back-end signals
	txCall int
	stop   int // eventfd, readable when the loop shall end; shared by all pairs and never drained
	c      counts

	fds  [numFDs]unix.PollFd
	word [8]byte
}

// run is the loop's body; it returns nil when asked to stop.
func (p *pair) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer p.c.publish()
	p.rx.drv.DisableCalls()
	p.tx.drv.DisableCalls()
	for turn := 0; ; turn++ {
		n, err := p.rx.turn(p.tap, rxBudget, &p.c)
		if err != nil {
			return err
		}
		m, err := p.tx.turn(p.tap, txBudget, &p.c)
		if err != nil {
			return err
		}
		p.c.publish()
		if n+m > 0 {
			// A loop that never sleeps must still hear that it shall end.
			if turn&63 != 0 || !p.stopped() {
				continue
			}
			return nil
		}
		if stop, err := p.sleep(); stop || err != nil {
			return err
		}
	}
}

// sleep waits until either side has something. It asks for calls first and looks again after, so none is lost (2.7.10).
func (p *pair) sleep() (stop bool, err error) {
	p.fds[fdTap] = unix.PollFd{Fd: int32(p.tap), Events: unix.POLLIN}
	p.fds[fdRxCall] = unix.PollFd{Fd: int32(p.rxCall), Events: unix.POLLIN}
	p.fds[fdTxCall] = unix.PollFd{Fd: -1, Events: unix.POLLIN}
	p.fds[fdStop] = unix.PollFd{Fd: int32(p.stop), Events: unix.POLLIN}
	if len(p.tx.free) == 0 {
		// Nothing can be read from the tap until the back-end gives a buffer back.
		p.fds[fdTap].Fd = -1
		p.fds[fdTxCall].Fd = int32(p.txCall)
		if p.tx.drv.EnableCalls() {
			p.tx.drv.DisableCalls()
			return false, nil
		}
	}
	if !p.rx.drv.EnableCalls() {
		p.c.sleeps++
		if _, err := unix.Ppoll(p.fds[:], nil, nil); err != nil && err != unix.EINTR {
			return false, fmt.Errorf("wait: %w", err)
		}
	}
	p.rx.drv.DisableCalls()
	if p.fds[fdTxCall].Fd >= 0 {
		p.tx.drv.DisableCalls()
	}
	for _, i := range [...]int{fdRxCall, fdTxCall} {
		if p.fds[i].Revents != 0 {
			_, _ = read(int(p.fds[i].Fd), p.word[:]) // an eventfd; whether it counted does not matter
		}
	}
	if r := p.fds[fdTap].Revents; r&(unix.POLLERR|unix.POLLNVAL) != 0 && r&unix.POLLIN == 0 {
		// A tap whose link is down answers so, at once and every time; the stack can bring it up later.
		return p.waitForLink()
	}
	return p.fds[fdStop].Revents != 0, nil
}

// linkRetry is how often a tap whose link is down is looked at, in milliseconds.
const linkRetry = 10

func (p *pair) waitForLink() (stop bool, err error) {
	fd := [1]unix.PollFd{p.fds[fdStop]}
	n, err := unix.Poll(fd[:], linkRetry)
	if err != nil && err != unix.EINTR {
		return false, fmt.Errorf("wait: %w", err)
	}
	return n > 0, nil
}

func (p *pair) stopped() bool {
	fd := [1]unix.PollFd{{Fd: int32(p.stop), Events: unix.POLLIN}}
	n, _ := unix.Poll(fd[:], 0)
	return n > 0
}

// signal adds one to an eventfd. It fails only when the counter is full, and then the other side has its signal.
func signal(fd int) {
	one := [8]byte{1} // native byte order does not matter: any number that is not 0 wakes
	_, _ = unix.Write(fd, one[:])
}
