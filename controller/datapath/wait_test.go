package datapath

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
)

// asleep waits until a worker has nothing to do and sleeps: two looks find its steps and its flushes unchanged.
func (r *rig) asleep() {
	r.tb.Helper()
	steps := func() (n int) {
		r.nic.set(func(f *fakeNIC) { n = f.refills })
		return n
	}
	waitFor(r.tb, "sleep", func() bool {
		before := steps()
		time.Sleep(3 * time.Millisecond)
		return steps() == before
	})
}

func TestAWorkerWithNothingToDoSleepsWithoutEnd(t *testing.T) {
	r := running(t)
	r.add(1, &fakeSource{fd: -1})
	r.asleep()
	var before, after int
	r.nic.set(func(f *fakeNIC) { before = f.refills })
	time.Sleep(50 * time.Millisecond)
	r.nic.set(func(f *fakeNIC) { after = f.refills })
	if before != after {
		t.Errorf("%d steps of an idle worker", after-before)
	}
}

// Each of these must wake a worker that sleeps without end.
func TestWhatWakesAWorker(t *testing.T) {
	t.Run("a frame", func(t *testing.T) {
		r := running(t)
		g := r.add(1)
		r.asleep()
		r.inject(to(1, 100).With(func(p *pt.TCP) { p.Flags = pt.ACK | pt.PSH }).Frame())
		waitFor(t, "the frame", func() bool { return r.frames(g) == 1 })
	})
	t.Run("a kick of a source", func(t *testing.T) {
		r := running(t)
		s := &lockedSource{fakeSource: fakeSource{fd: eventfd(t)}}
		r.add(1, s)
		r.asleep()
		s.set(func(f *fakeSource) {
			if !f.armed {
				t.Error("asleep, and no kick was asked for")
			}
			f.send(noHdr, from(1, wire, 100).Frame())
		})
		signal(s.fd)
		waitFor(t, "the frame", func() bool { return len(r.nic.sent()) == 1 })
		waitFor(t, "the kick to be taken", func() bool {
			var acks int
			s.set(func(f *fakeSource) { acks = f.acks })
			return acks > 0
		})
	})
	t.Run("room in a hungry guest", func(t *testing.T) {
		r := running(t)
		g := r.add(1)
		fd := eventfd(t)
		r.on(func() { g.fd, g.room = fd, 0 })
		r.inject(to(1, 100).Frame())
		waitFor(t, "hunger", func() (yes bool) {
			r.on(func() { yes = r.w.ports[1].hungry && len(g.arms) > 0 })
			return yes
		})
		signal(fd)
		waitFor(t, "the sign to be taken", func() (yes bool) {
			r.on(func() { yes = g.acks > 0 })
			return yes
		})
		r.on(func() { g.room = -1 })
		waitFor(t, "the frame", func() bool { return r.frames(g) == 1 })
		r.on(func() {
			for _, hungry := range g.arms {
				if !hungry {
					t.Error("asked for a sign as if nothing waited")
				}
			}
		})
	})
	t.Run("chunks that a guest gives back", func(t *testing.T) {
		r := running(t)
		g := r.add(1)
		fd := eventfd(t)
		r.on(func() { g.fd, g.keeps, g.keepMost = fd, true, 100 })
		r.inject(to(1, 100).With(func(p *pt.TCP) { p.Flags = pt.ACK | pt.PSH }).Frame())
		waitFor(t, "a chunk with the guest", func() (yes bool) {
			r.on(func() { yes = r.w.ports[1].held == 1 })
			return yes
		})
		r.on(func() { g.keepMost = 0 })
		signal(fd)
		waitFor(t, "the chunk", func() bool { return r.nic.with(inWorker) == 0 })
	})
	t.Run("a group frame", func(t *testing.T) {
		group := &fakeMulticast{fd: eventfd(t)}
		r := running(t, func(c *Config) { c.Multicast = group })
		g := r.add(1)
		r.on(func() { group.queue = []groupFrame{{frame: pt.ARP()}} })
		r.asleep()
		signal(group.fd)
		waitFor(t, "the frame", func() bool { return r.frames(g) >= 1 })
		var b [8]byte
		_, _ = unix.Read(group.fd, b[:])
	})
	t.Run("a deadline", func(t *testing.T) {
		r := running(t)
		g := r.add(1)
		if err := r.w.SetRules(1, rules(func(c *flowtable.PortConfig) { c.Hold = 2 * time.Millisecond })); err != nil {
			t.Fatal(err)
		}
		r.inject(to(1, 100).Frame())
		waitFor(t, "the frame", func() bool { return r.frames(g) == 1 })
		r.on(func() {
			if n := r.ledger(1).Passed[flowtable.ReasonDeadline]; n != 1 {
				t.Errorf("%d frames left at their deadline", n)
			}
		})
	})
	t.Run("room to send", func(t *testing.T) {
		r := running(t)
		r.nic.set(func(n *fakeNIC) { n.txSize = 0 })
		s := &lockedSource{fakeSource: fakeSource{fd: -1}}
		r.add(1, s)
		s.set(func(f *fakeSource) { f.send(noHdr, from(1, wire, 100).Frame()) })
		waitFor(t, "a frame without room", func() (yes bool) {
			r.on(func() { yes = r.w.txShort })
			return yes
		})
		r.nic.set(func(n *fakeNIC) { n.txSize = 8 }) // which wakes nobody
		waitFor(t, "the frame", func() bool { return len(r.nic.sent()) == 1 })
	})
}

// A guest whose sign went to nobody is looked at all the same, and so is a wire that had no room.
func TestALostSignIsMadeUpFor(t *testing.T) {
	r := running(t)
	g := r.add(1)
	r.on(func() { g.room = 0 })
	r.inject(to(1, 100).Frame())
	waitFor(t, "hunger", func() (yes bool) {
		r.on(func() { yes = r.w.ports[1].hungry })
		return yes
	})
	r.on(func() { g.room = -1 })
	waitFor(t, "the frame", func() bool { return r.nic.with(inWorker) == 0 }) // which wakes nobody

	s := &lockedSource{fakeSource: fakeSource{fd: -1}}
	r.add(2, s)
	r.nic.set(func(n *fakeNIC) { n.busy = true })
	s.set(func(f *fakeSource) { f.send(noHdr, from(2, wire, 100).Frame()) })
	r.on(func() {})
	waitFor(t, "a frame that waits for the wire", func() bool { return r.nic.TxPending() == 1 })
	r.nic.set(func(n *fakeNIC) { n.busy = false })
	waitFor(t, "the frame", func() bool { return len(r.nic.sent()) == 1 })
}

// Frames that came between the last look and the sleep are not slept over.
func TestNoKickIsLostBetweenTheLastLookAndTheSleep(t *testing.T) {
	r := newRig(t)
	wake := eventfd(t)
	r.w.cfg.WakeFD = wake
	r.nic.withFD()
	s := &fakeSource{fd: -1, more: true}
	r.vm(1)
	g := r.start(1, rules(), s)
	done := make(chan struct{})
	sleep := func(what string) {
		t.Helper()
		go func() {
			r.w.wait()
			done <- struct{}{}
		}()
		select {
		case <-done:
		case <-time.After(patience):
			signal(wake)
			<-done
			t.Fatalf("slept over %s", what)
		}
	}
	sleep("frames that a source has")
	s.more = false
	if s.armed {
		t.Error("awake, and kicks are still asked for")
	}
	g.keeps, g.keepMost, g.ready = true, 100, true
	r.inject(to(1, 100).Frame())
	r.w.step()
	sleep("chunks that a guest gives back")
	if len(g.arms) == 0 || g.arms[0] {
		t.Errorf("Arm: %v", g.arms)
	}
	// A guest that is not to be heard of is not asked.
	g.giveBack(0)
	r.w.step()
	arms := len(g.arms)
	signal(wake)
	sleep("a message")
	if len(g.arms) != arms {
		t.Error("a guest that has nothing and lacks nothing was asked for a sign")
	}
}

// While a frame waits for TX room, more frames are no news.
func TestAStalledWorkerAsksForNoKicks(t *testing.T) {
	r := newRig(t)
	r.w.cfg.WakeFD = eventfd(t)
	r.nic.withFD()
	r.nic.txSize, r.nic.busy = 1, true
	_, s := r.sender(1)
	s.send(noHdr, train(from(1, wire, 100), 2)...)
	r.step()
	r.w.wait() // the descriptor is writable
	if s.arms != 0 || r.w.txStalled {
		t.Errorf("%d kicks asked for, stalled %v", s.arms, r.w.txStalled)
	}
	if r.w.fds[fdNIC].Events&unix.POLLOUT == 0 {
		t.Error("room to send would not wake the worker")
	}
	r.nic.txSize, r.nic.busy = 8, false
	r.step()
	signal(r.w.cfg.WakeFD)
	r.w.wait()
	if s.arms != 1 || r.w.fds[fdNIC].Events&unix.POLLOUT != 0 {
		t.Errorf("%d kicks asked for, events %x", s.arms, r.w.fds[fdNIC].Events)
	}
}

// An interface that is down makes its descriptor readable with an error for as long as it is down.
func TestAnErrorOfTheNICsDescriptorIsSleptOver(t *testing.T) {
	r := newRig(t)
	r.w.cfg.WakeFD = eventfd(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.nic.fd = pair[0]
	defer unix.Close(pair[0])
	_ = unix.Close(pair[1]) // POLLHUP
	start := time.Now()
	r.w.wait()
	if !r.w.nicBroken {
		t.Fatal("nobody noticed")
	}
	r.nic.fd = -1
	r.w.wait() // without the descriptor
	if r.w.nicBroken || time.Since(start) < errorBackoff {
		t.Errorf("broken %v, slept %v", r.w.nicBroken, time.Since(start))
	}
	if r.w.fds[fdNIC].Fd != -1 {
		t.Error("a broken descriptor was polled")
	}
}

// A worker that is never idle hears of everything else all the same.
func TestABusyWorkerLooksAtTheOthers(t *testing.T) {
	group := &fakeMulticast{fd: eventfd(t)}
	endless := &endlessSource{fakeSource: fakeSource{fd: -1}}
	r := running(t, func(c *Config) { c.Multicast = group })
	busy := r.add(1, endless)
	g := r.add(2)
	fd := eventfd(t)
	r.on(func() { g.fd, g.room = fd, 0 })
	r.inject(to(2, 100).Frame())
	waitFor(t, "hunger", func() (yes bool) {
		r.on(func() { yes = r.w.ports[2].hungry })
		return yes
	})
	r.on(func() { group.queue = []groupFrame{{frame: pt.ARP()}} })
	signal(group.fd)
	signal(fd)
	waitFor(t, "a group frame and a guest's sign", func() (yes bool) {
		r.on(func() { yes = len(busy.got) > 0 && g.acks > 0 })
		return yes
	})
	endless.end.Store(true)
	var b [8]byte
	_, _ = unix.Read(group.fd, b[:])
}

// A port that comes or goes while the worker sleeps changes what it waits for.
func TestThePollSetFollowsThePorts(t *testing.T) {
	r := running(t)
	a, b := &lockedSource{fakeSource: fakeSource{fd: eventfd(t)}}, &lockedSource{fakeSource: fakeSource{fd: eventfd(t)}}
	r.add(1, a)
	r.asleep()
	r.add(2, b)
	if err := r.w.StopPort(1); err != nil {
		t.Fatal(err)
	}
	r.asleep()
	b.set(func(f *fakeSource) { f.send(noHdr, from(2, wire, 100).Frame()) })
	signal(b.fd)
	waitFor(t, "the frame", func() bool { return len(r.nic.sent()) == 1 })
	r.on(func() {
		if len(r.w.fds) != fdPorts+1+2 {
			t.Errorf("%d descriptors", len(r.w.fds))
		}
	})
	if err := r.w.Remove(1); err != nil {
		t.Fatal(err)
	}
	r.on(func() {})
	r.asleep()
	r.on(func() {
		if len(r.w.fds) != fdPorts+1+1 {
			t.Errorf("%d descriptors", len(r.w.fds))
		}
	})
}

// lockedSource is a fakeSource that a test changes while a worker runs.
type lockedSource struct {
	fakeSource
	mu sync.Mutex
}

func (s *lockedSource) set(change func(f *fakeSource)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.fakeSource)
}

func (s *lockedSource) Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() int) (n, walked int, err error) {
	s.set(func(f *fakeSource) { n, walked, err = f.Poll(budget, fn, before) })
	return n, walked, err
}

func (s *lockedSource) ArmKick() (more bool) {
	s.set(func(f *fakeSource) { more = f.ArmKick() })
	return more
}

func (s *lockedSource) DisarmKick() { s.set((*fakeSource).DisarmKick) }

// AckKick takes the kick off the eventfd, as a virtqueue does.
func (s *lockedSource) AckKick() {
	var b [8]byte
	_, _ = unix.Read(s.fd, b[:])
	s.set((*fakeSource).AckKick)
}

// endlessSource has a frame whenever it is asked, until its end.
type endlessSource struct {
	fakeSource
	end atomic.Bool
}

func (s *endlessSource) Poll(budget int, fn func(*vhost.TxFrame) vhost.Next, before func() int) (int, int, error) {
	if !s.end.Load() {
		s.queue = []vhost.TxFrame{{Data: from(9, wire, 100).Frame()}} // dropped: a foreign source
	}
	return s.fakeSource.Poll(budget, fn, before)
}
