package netdev

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// WatchInterval is how often a Watcher looks without being told: a driver whose queue count is changed by the ethtool
// ioctl announces nothing, nor does a BPF link that attaches XDP. One look costs a few system calls per interface.
const WatchInterval = 5 * time.Second

// Watcher reports changes of chosen interfaces of one network namespace, and that something of the namespace has changed:
// its interfaces or the rules on their paths.
//
// It compares facts and does not replay the kernel's messages: whatever wakes it (a link message, an ethtool message,
// messages lost for lack of room, the interval), it looks at every watched interface and reports what differs from
// before. So nothing is lost for good, but an interface that went down and up again within a moment may report neither.
type Watcher struct {
	h      *Handle
	files  []*os.File    // netlink sockets with news
	news   atomic.Uint32 // a bit for each kind of event of the namespace that is due
	wake   chan struct{}
	done   chan struct{}
	events chan Event
	wg     sync.WaitGroup
	once   sync.Once

	mu    sync.Mutex
	links map[int]*Facts // by ifindex, as last reported
}

// NewWatcher starts watching nothing, in the calling thread's namespace. Close it.
func NewWatcher() (*Watcher, error) { return newWatcher(WatchInterval) }

func newWatcher(interval time.Duration) (*Watcher, error) {
	h, err := Open()
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		h: h, wake: make(chan struct{}, 1), done: make(chan struct{}),
		events: make(chan Event, 16), links: map[int]*Facts{},
	}
	if err := w.open(); err != nil {
		for _, f := range w.files {
			f.Close()
		}
		h.Close()
		return nil, fmt.Errorf("link watch: %w", err)
	}
	w.wg.Go(func() { w.run(interval) })
	return w, nil
}

// open opens the sockets and begins to listen.
func (w *Watcher) open() error {
	type source struct {
		family, group int
		kind          EventKind // of the namespace, noNews for none
		optional      bool      // a kernel need not have it
	}
	// Without the ethtool family (before Linux 5.6) the interval is what finds a changed queue count, and without nf_tables there
	// are no rules of it.
	sources := []source{
		{unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, LinksChanged, false},
		{unix.NETLINK_ROUTE, unix.RTNLGRP_TC, RulesChanged, false},
		{unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES, RulesChanged, true},
	}
	if group, err := w.h.genlGroup(ethtoolFamily, ethtoolMonitor); err == nil {
		sources = append(sources, source{unix.NETLINK_GENERIC, group, noNews, true})
	}
	for _, s := range sources {
		f, err := newsSocket(s.family, s.group)
		switch {
		case err != nil && s.optional:
			continue
		case err != nil:
			return err
		}
		w.files = append(w.files, f)
		w.wg.Go(func() { w.listen(f, s.kind) })
	}
	return nil
}

// noNews is no kind of event.
const noNews = EventKind(0xff)

// newsEvery is how often events of the namespace are sent at most: who loads a rule set sends a message for each rule.
const newsEvery = 100 * time.Millisecond

// Events is where changes are sent. It must be read: while it is full, the watcher waits. Close closes it.
func (w *Watcher) Events() <-chan Event { return w.events }

// Add begins to watch an interface and returns the facts that changes are measured against. An interface that is
// watched already starts anew from these.
func (w *Watcher) Add(name string) (*Facts, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, err := w.h.Inspect(name)
	if err != nil {
		return nil, err
	}
	w.links[f.Index] = f
	return f, nil
}

// Remove stops watching an interface by its index. An event of it may already be in the channel.
func (w *Watcher) Remove(index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.links, index)
}

// Check makes the watcher look now.
func (w *Watcher) Check() {
	select {
	case w.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Close ends the watcher and closes the channel of events.
func (w *Watcher) Close() error {
	var errs []error
	w.once.Do(func() {
		close(w.done)
		for _, f := range w.files {
			errs = append(errs, f.Close())
		}
		w.wg.Wait()
		close(w.events)
		errs = append(errs, w.h.Close())
	})
	return errors.Join(errs...)
}

// newsSocket opens a netlink socket for one multicast group. It is read through the runtime's poller, so Close ends a
// read that waits.
func newsSocket(family int, group int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, fmt.Errorf("netlink: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink: bind: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink: group %d: %w", group, err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// listen turns messages into wake-ups. What they say is not read: the facts are.
func (w *Watcher) listen(f *os.File, kind EventKind) {
	buf := make([]byte, 1<<16)
	for {
		_, err := f.Read(buf)
		// ENOBUFS: messages were lost, which is one more reason to look.
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return // closed
		}
		if kind != noNews {
			w.news.Or(1 << kind)
		}
		w.Check()
	}
}

func (w *Watcher) run(interval time.Duration) {
	tick, later := time.NewTicker(interval), time.NewTimer(interval)
	defer tick.Stop()
	defer later.Stop()
	var told time.Time
	for {
		select {
		case <-w.done:
			return
		case <-w.wake:
		case <-later.C:
		case <-tick.C:
		}
		events := w.compare()
		if wait := newsEvery - time.Since(told); wait > 0 && w.news.Load() != 0 {
			later.Reset(wait)
		} else if bits := w.news.Swap(0); bits != 0 {
			told = time.Now()
			for _, kind := range []EventKind{LinksChanged, RulesChanged} {
				if bits&(1<<kind) != 0 {
					events = append(events, Event{Kind: kind})
				}
			}
		}
		for _, e := range events {
			select {
			case w.events <- e:
			case <-w.done:
				return
			}
		}
	}
}

// compare looks at every watched interface. Events are sent after the lock is given back, so that their reader may call
// Add and Remove.
func (w *Watcher) compare() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var events []Event
	for index, was := range w.links {
		now, err := w.h.InspectIndex(index)
		switch {
		case err == nil:
			events = append(events, changes(was, now)...)
			w.links[index] = now
		case errors.Is(err, ErrNoDevice):
			events = append(events, Event{Kind: Gone, Index: index, Was: was})
			delete(w.links, index)
		}
		// Any other error is about asking, not about the interface: the next look asks again.
	}
	return events
}
