package controller

import (
	"time"

	"golang.org/x/sys/unix"
)

// Positions in the poll set; the ports' kicks follow.
const (
	fdXSK = iota
	fdWake
	fdMcast
	fdPorts
)

// wait sleeps until there is work: frames, a kick, a message, or the nearest deadline. Before it sleeps it asks every
// guest for kicks again and looks once more, so that no kick is lost between the last look and the sleep (virtio 1.2,
// 2.7.10: the driver may have added buffers before it saw the change).
func (w *worker) wait() {
	timeout := w.timeout()
	for _, r := range w.tx {
		if !w.txStalled && r.q.ArmKick() {
			timeout = 0
		}
	}
	if w.fdsStale {
		w.rebuildPollSet()
	}
	w.fds[fdXSK].Fd = int32(w.xs.FD())
	w.fds[fdXSK].Events = unix.POLLIN
	if w.txStalled {
		w.fds[fdXSK].Events |= unix.POLLOUT
	}
	if w.xskBroken { // POLLERR would make the sleep a spin
		w.fds[fdXSK].Fd = -1
		w.xskBroken = false
		timeout = min(timeout, errorBackoff)
	}
	if w.armBlocked() {
		timeout = 0
	}
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(timeout.Nanoseconds())
		ts = &t
	}
	n, err := unix.Ppoll(w.fds, ts, nil)
	for _, r := range w.tx {
		r.q.DisarmKick()
	}
	w.txStalled = false
	if err != nil || n == 0 {
		return // EINTR or a deadline: the next step looks at everything
	}
	w.drainEvents()
}

// timeout is how long the worker may sleep; negative without a bound.
func (w *worker) timeout() time.Duration {
	t := time.Duration(-1)
	if at, ok := w.table.NextDeadline(); ok {
		t = max(0, time.Duration(at-w.clock()))
	}
	if w.blocked > 0 && (t < 0 || t > blockedRetry) {
		t = blockedRetry
	}
	if w.xs.TxPending() > 0 && (t < 0 || t > txRetry) {
		t = txRetry
	}
	if w.xskBroken && t < 0 {
		t = errorBackoff
	}
	return t
}

// rebuildPollSet lays out the poll set after a port came or went.
func (w *worker) rebuildPollSet() {
	w.fds = append(w.fds[:0],
		unix.PollFd{Fd: int32(w.xs.FD()), Events: unix.POLLIN},
		unix.PollFd{Fd: int32(w.wakeFD), Events: unix.POLLIN},
		unix.PollFd{Fd: -1, Events: unix.POLLIN})
	if w.mcast != nil {
		w.fds[fdMcast].Fd = int32(w.mcast.FD())
	}
	for _, r := range w.tx { // the order is ackKick's
		w.fds = append(w.fds, unix.PollFd{Fd: int32(r.q.KickFD()), Events: unix.POLLIN})
	}
	for _, p := range w.list {
		w.fds = append(w.fds, unix.PollFd{Fd: -1, Events: unix.POLLIN}) // the RX kick, only while blocked
		p.pollAt = len(w.fds) - 1
	}
	w.fdsStale = false
}

// armBlocked watches the RX kick of ports whose guest has no buffers and the call of rings that hold much, and of no other.
// It reports whether one of those rings has moved already.
func (w *worker) armBlocked() (ready bool) {
	for _, p := range w.list {
		w.fds[p.pollAt].Fd = -1
		switch {
		case p.tap != nil:
			fd, moved := p.tap.armTap(p.blocked)
			w.fds[p.pollAt].Fd = int32(fd)
			ready = ready || moved
		case p.blocked && p.rx != nil:
			w.fds[p.pollAt].Fd = int32(p.rx.KickFD())
		}
	}
	return ready
}

// look polls without sleeping, for a worker too busy to sleep: multicast frames, kicks of blocked ports, and an RX or TX
// side of the kernel that wants a wake-up must not wait for a pause in the traffic.
func (w *worker) look() {
	if w.fdsStale {
		w.rebuildPollSet()
	}
	w.armBlocked()
	if n, err := unix.Ppoll(w.fds, &unix.Timespec{}, nil); err == nil && n > 0 {
		w.drainEvents()
	}
}

func (w *worker) drainEvents() {
	var b [8]byte
	for i := range w.fds {
		f := &w.fds[i]
		if f.Revents == 0 || f.Fd < 0 {
			continue
		}
		switch i {
		case fdXSK:
			if f.Revents&(unix.POLLERR|unix.POLLNVAL|unix.POLLHUP) != 0 {
				w.xskBroken = true
			}
		case fdMcast:
			w.receiveMulticast()
		case fdWake:
			_, _ = unix.Read(w.wakeFD, b[:]) // whether it counted does not matter: the queue of messages is looked at
		default:
			w.ackKick(i - fdPorts)
		}
	}
}

// ackKick takes the kick off the i-th virtqueue of the poll set: the TX virtqueues, then each port's RX virtqueue.
func (w *worker) ackKick(i int) {
	if i < len(w.tx) {
		w.tx[i].q.AckKick()
	} else if p := w.list[i-len(w.tx)]; p.rx != nil {
		p.rx.AckKick()
	} else if p.tap != nil && p.tap.net != nil {
		p.tap.net.AckCall()
	}
}
