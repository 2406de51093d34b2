package datapath

import (
	"time"

	"golang.org/x/sys/unix"
)

// Positions in the poll set; behind them the kicks of the sources, then one descriptor per port.
const (
	fdNIC = iota
	fdWake
	fdGroup
	fdHost
	fdPorts
)

// wait sleeps until there is work: frames, a kick, a message, or the nearest deadline. Before it sleeps it asks every source
// for kicks again and looks once more, so that no kick is lost between the last look and the sleep (virtio 1.2, 2.7.10:
// the driver may have added buffers before it saw the change).
func (w *Worker) wait() {
	ready := w.arm()
	timeout := w.timeout()
	w.eachSource(func(e *egress) {
		if !w.txStalled && !e.short && e.port.txAt == 0 && e.src.ArmKick() {
			timeout = 0
		}
	})
	if ready {
		timeout = 0
	}
	if _, signless := w.nic.(*SocketNIC); w.txStalled && !signless { // of that one room is looked for again after txRetry
		w.fds[fdNIC].Events |= unix.POLLOUT
	}
	if w.nicBroken { // POLLERR would make the sleep a spin
		w.fds[fdNIC].Fd = -1
		w.nicBroken = false
		timeout = min(timeout, errorBackoff)
	}
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(timeout.Nanoseconds())
		ts = &t
	}
	w.polls++
	n, err := unix.Ppoll(w.fds, ts, nil)
	if w.wary { // this sleep was nobody's fault
		w.known = w.waits()
	}
	w.eachSource(func(e *egress) { e.src.DisarmKick() })
	w.txStalled = false
	if err != nil || n == 0 {
		return // EINTR or a deadline: the next step looks at everything
	}
	w.drainEvents()
}

// look polls without sleeping, for a worker too busy to sleep: group frames, kicks of guests without room, and an RX or TX
// side of the kernel that wants a wake-up must not wait for a pause in the traffic.
func (w *Worker) look() {
	w.arm()
	if n, err := unix.Ppoll(w.fds, &unix.Timespec{}, nil); err == nil && n > 0 {
		w.drainEvents()
	}
}

// timeout is how long the worker may sleep, as things stood when arm looked; negative without a bound. A guest without room is
// no reason to wake up, unless it has no sign of room: a VM that is paused would cost a thousand wake-ups a second.
func (w *Worker) timeout() time.Duration {
	t := time.Duration(-1)
	atMost := func(d time.Duration) {
		if t < 0 || d < t {
			t = d
		}
	}
	if at, ok := w.table.NextDeadline(); ok {
		atMost(max(0, time.Duration(at-w.clock())))
	}
	if w.signless {
		atMost(hungryRetry)
	}
	if d := w.restLeft(); d >= 0 {
		atMost(d)
	}
	if d := w.paceLeft(); d >= 0 {
		atMost(time.Duration(d))
	}
	switch {
	case w.nicBroken: // whatever is pending will not go before the link is up
		atMost(errorBackoff)
	case w.nic.TxUnsent(), w.txStalled && w.nic.TxPending() > 0, w.txShort:
		atMost(txRetry)
	}
	return t
}

// arm brings the poll set up to date and asks the guests that must be heard of for a sign: those without room, and those that
// hold many chunks. It is the one place that does. It reports whether one of them has moved already.
func (w *Worker) arm() (ready bool) {
	if w.fdsStale {
		w.rebuildPollSet()
	}
	w.fds[fdNIC].Fd, w.fds[fdNIC].Events = int32(w.nic.FD()), unix.POLLIN
	w.signless = false
	for _, p := range w.list {
		fd, moved := -1, false
		if p.guest != nil && (p.hungry || p.held > 0) && !w.resting(p) {
			fd, moved = p.guest.Arm(p.hungry)
			w.signless = w.signless || p.hungry && fd < 0
		}
		w.fds[p.pollAt].Fd = int32(fd)
		ready = ready || moved
	}
	return ready
}

// rebuildPollSet lays out the poll set after a port came or went.
func (w *Worker) rebuildPollSet() {
	w.fds = append(w.fds[:0],
		unix.PollFd{Fd: -1},
		unix.PollFd{Fd: int32(w.cfg.WakeFD), Events: unix.POLLIN},
		unix.PollFd{Fd: -1, Events: unix.POLLIN},
		unix.PollFd{Fd: -1, Events: unix.POLLIN})
	if w.host.In != nil {
		w.fds[fdHost].Fd = int32(w.host.In.FD())
	}
	if w.group != nil {
		w.fds[fdGroup].Fd = int32(w.group.FD())
	}
	for _, e := range w.egress { // the order is ack's
		w.fds = append(w.fds, unix.PollFd{Fd: int32(e.src.KickFD()), Events: unix.POLLIN})
	}
	for _, p := range w.list {
		p.pollAt = len(w.fds)
		w.fds = append(w.fds, unix.PollFd{Fd: -1, Events: unix.POLLIN}) // arm's
	}
	w.fdsStale = false
}

// drainEvents takes the signs off what was readable. What they are about, the next step sees.
func (w *Worker) drainEvents() {
	var b [8]byte
	for i := range w.fds {
		f := &w.fds[i]
		if f.Revents == 0 || f.Fd < 0 {
			continue
		}
		switch i {
		case fdNIC:
			if f.Revents&(unix.POLLERR|unix.POLLNVAL|unix.POLLHUP) != 0 {
				w.nicBroken = true
			}
		case fdGroup:
			w.receiveGroup()
		case fdHost:
			w.host.ready = true
		case fdWake:
			_, _ = unix.Read(w.cfg.WakeFD, b[:]) // whether it counted does not matter: the queue of messages is looked at
		default:
			w.ack(i - fdPorts)
		}
	}
}

// ack takes the sign off the i-th descriptor behind the fixed ones.
func (w *Worker) ack(i int) {
	if i < len(w.egress) {
		w.egress[i].src.AckKick()
	} else if p := w.list[i-len(w.egress)]; p.guest != nil {
		p.guest.Ack()
	}
}
