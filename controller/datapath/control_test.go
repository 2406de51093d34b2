package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

const patience = 10 * time.Second

func eventfd(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func signal(fd int) { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

func waitFor(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			tb.Fatalf("never happened: %s", what)
		}
	}
}

// running is a rig whose worker has a goroutine, real descriptors and the real clock.
func running(tb testing.TB, edits ...func(*Config)) *rig {
	tb.Helper()
	wake := eventfd(tb)
	r := newRig(tb, append([]func(*Config){func(c *Config) { c.WakeFD, c.Clock = wake, nil }}, edits...)...)
	r.nic.withFD()
	r.w.Start()
	tb.Cleanup(r.stop)
	return r
}

// stop stops a worker, also one that was stuck and is not waited for long any more.
func (r *rig) stop() {
	r.tb.Helper()
	waitFor(r.tb, "the worker's end", func() bool {
		err := r.w.Stop()
		if err != nil && !errors.Is(err, ErrStuck) {
			r.tb.Errorf("stop: %v", err)
		}
		return err == nil
	})
}

// on runs fn on the worker.
func (r *rig) on(fn func()) {
	r.tb.Helper()
	if err := r.w.do(fn); err != nil {
		r.tb.Fatal(err)
	}
}

// add adds a VM to a running worker and starts it.
func (r *rig) add(index uint32, sources ...Source) *fakeGuest {
	r.tb.Helper()
	g := r.newGuest()
	if err := errors.Join(r.w.Add(PortConfig{Index: index, Addr: Addr{MAC: macOf(index)}, NoteSenders: true}),
		r.w.StartPort(index, g, sources, rules())); err != nil {
		r.tb.Fatal(err)
	}
	return g
}

// frames is how many frames a guest of a running worker got.
func (r *rig) frames(g *fakeGuest) (n int) {
	r.on(func() { n = len(g.got) })
	return n
}

func TestARunningWorkerDeliversAndStops(t *testing.T) {
	r := running(t)
	g := r.add(1)
	p := to(1, 1000)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 3)
	for _, f := range want { // each wakes a worker that sleeps
		activity, n := r.w.Activity(), r.frames(g)
		r.inject(f)
		waitFor(t, "a frame", func() bool { return r.frames(g) > n })
		if r.w.Activity() == activity {
			t.Error("moved, and shows no activity")
		}
	}
	r.on(func() { r.check() })
	if err := r.w.Fault(); err != nil {
		t.Errorf("fault: %v", err)
	}
	if err := r.w.Stop(); err != nil {
		t.Fatal(err)
	}
	packets(t, g.got, want...)
	if g.closed != 1 {
		t.Errorf("the guest was closed %d times", g.closed)
	}
	if err := r.w.Stop(); err != nil {
		t.Errorf("stopped again: %v", err)
	}
	if err := r.w.Add(PortConfig{Index: 5}); !errors.Is(err, ErrStopped) {
		t.Errorf("a message to a worker that has stopped: %v", err)
	}
	if err := r.w.Fault(); err != nil {
		t.Errorf("a worker that was stopped has no fault: %v", err)
	}
	if r.trouble.Load() != 0 {
		t.Error("a stop is no trouble")
	}
}

func TestTheMethodsDoWhatTheySay(t *testing.T) {
	r := running(t)
	g := r.add(1)
	if err := r.w.StartPort(9, r.newGuest(), nil, rules()); !errors.Is(err, ErrNoPort) {
		t.Errorf("a port that is not there starts: %v", err)
	}
	if err := r.w.SetRules(1, flowtable.PortConfig{Hold: -1}); !errors.Is(err, flowtable.ErrConfig) {
		t.Errorf("bad rules: %v", err)
	}

	// What is held under the old rules is delivered before SetRules returns.
	if err := r.w.SetRules(1, rules(func(c *flowtable.PortConfig) { c.Hold = time.Hour })); err != nil {
		t.Fatal(err)
	}
	want := train(to(1, 1000), 4)
	r.inject(want...)
	waitFor(t, "four packets held", func() (yes bool) {
		r.on(func() { yes = r.ledger(1).Held == 4 })
		return yes
	})
	if err := r.w.SetRules(1, rules()); err != nil {
		t.Fatal(err)
	}
	var sealed uint64
	r.on(func() {
		packets(t, g.take(), want...)
		sealed = r.ledger(1).Sealed[flowtable.ReasonPolicy]
	})
	if sealed != 1 {
		t.Errorf("%d superframes left for the policy", sealed)
	}

	if err := r.w.SetLate(1, true); err != nil {
		t.Fatal(err)
	}
	if err := r.w.SetLate(77, true); err != nil {
		t.Errorf("late, of no port: %v", err)
	}
	r.inject(to(1, 100).With(func(p *pt.TCP) { p.SrcMAC = [6]byte{2, 7, 7, 7, 7, 7} }).Frame())
	waitFor(t, "the late frame", func() bool { return r.frames(g) == 1 })
	if err := r.w.Drain(); err != nil {
		t.Error(err)
	}
	s, err := r.w.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Port(1); p == nil || p.Counters.Late != 1 || p.Ledger.In != 5 || !p.Running {
		t.Errorf("snapshot: %+v", *s)
	}
	waitFor(t, "the worker's processor time to grow", func() bool { // each look costs some of it
		now, err := r.w.Snapshot()
		return err == nil && s.CPU > 0 && now.CPU > s.CPU
	})
	macs, err := r.w.Senders(1)
	if err != nil || len(macs) != 2 {
		t.Errorf("senders %v, %v", macs, err)
	}
	if macs, err = r.w.Senders(77); err != nil || len(macs) != 0 {
		t.Errorf("senders of nobody: %v, %v", macs, err)
	}

	if err := r.w.StopPort(1); err != nil {
		t.Fatal(err)
	}
	if g.closed != 1 {
		t.Errorf("closed %d times", g.closed)
	}
	if err := r.w.Remove(1); err != nil {
		t.Error(err)
	}
	if s, err = r.w.Snapshot(); err != nil || len(s.Ports) != 0 {
		t.Errorf("%d ports left, %v", len(s.Ports), err)
	}
}

func TestTheControlSideLooksAtAGuest(t *testing.T) {
	r := running(t)
	g := r.add(1)
	if err := r.w.CheckGuest(1, true); err != nil {
		t.Error(err)
	}
	if err := r.w.CheckGuest(77, true); err != nil {
		t.Errorf("a port that is not there: %v", err)
	}
	r.on(func() { g.checkErr = errFinished })
	if err := r.w.CheckGuest(1, false); !errors.Is(err, errFinished) {
		t.Errorf("a finished guest: %v", err)
	}
	if err := r.w.CheckGuest(1, true); !errors.Is(err, errFinished) {
		t.Errorf("a finished guest, again: %v", err)
	}
	r.inject(to(1, 100).Frame())
	waitFor(t, "a drop", func() (yes bool) {
		r.on(func() { yes = r.ledger(1).Dropped[flowtable.ReasonPortDown] == 1 })
		return yes
	})
	r.on(func() {
		if fmt.Sprint(g.refreshed) != "[true false]" {
			t.Errorf("looks with refresh: %v", g.refreshed)
		}
	})
	if err := r.w.StopPort(1); err != nil {
		t.Fatal(err)
	}
	if err := r.w.CheckGuest(1, true); err != nil {
		t.Errorf("no guest: %v", err)
	}
}

// An index beyond the last, and one that is in use, are the control side's mistakes; they end no worker.
func TestAnIndexOutOfRangeIsNoPort(t *testing.T) {
	r := running(t)
	for _, index := range []uint32{MaxPorts, 1 << 31} {
		if err := r.w.Add(PortConfig{Index: index}); !errors.Is(err, ErrNoPort) {
			t.Errorf("index %d: %v", index, err)
		}
	}
	old := r.add(MaxPorts - 1)
	if err := r.w.Add(PortConfig{Index: MaxPorts - 1, Addr: Addr{MAC: macOf(5)}}); err != nil {
		t.Fatal(err)
	}
	s, err := r.w.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Ports) != 1 || s.Ports[0].Running || old.closed != 1 {
		t.Errorf("%d ports, the old guest was closed %d times", len(s.Ports), old.closed)
	}
}

func TestAWorkerThatNeverStartedIsNotWaitedFor(t *testing.T) {
	r := newRig(t)
	if err := r.w.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	g := r.newGuest()
	if err := r.w.StartPort(1, g, nil, rules()); !errors.Is(err, ErrStopped) || g.closed != 1 {
		t.Errorf("%v, and the guest, which is the worker's, was closed %d times", err, g.closed)
	}
	if _, err := r.w.Snapshot(); !errors.Is(err, ErrStopped) {
		t.Errorf("snapshot: %v", err)
	}
}

func TestAPanicEndsOneWorkerAndNoOther(t *testing.T) {
	sick, well := running(t), running(t)
	g := sick.add(1)
	other := well.add(1)
	looked := make(chan error, 1)
	sick.on(func() { sick.w.cfg.Trouble = func() { looked <- sick.w.Fault() } })
	sick.nic.set(func(n *fakeNIC) { n.boom = "a bug" })
	sick.on2(t)
	err := <-looked
	if !errors.Is(err, ErrFault) || !strings.Contains(fmt.Sprint(err), "a bug") || !strings.Contains(fmt.Sprint(err), "worker 3") {
		t.Errorf("who looks when told of trouble finds %v", err)
	}
	if err := sick.w.Add(PortConfig{Index: 2}); !errors.Is(err, ErrFault) {
		t.Errorf("a message to it: %v", err)
	}
	orphan := sick.newGuest()
	if err := sick.w.StartPort(1, orphan, nil, rules()); !errors.Is(err, ErrFault) || orphan.closed != 1 {
		t.Errorf("%v, the guest that it was given was closed %d times", err, orphan.closed)
	}
	if !strings.Contains(sick.log.String(), "a bug") || !strings.Contains(sick.log.String(), "goroutine") {
		t.Errorf("the log does not say where: %q", sick.log.String())
	}
	if g.closed != 0 {
		t.Error("the guest was closed before Stop")
	}
	if err := sick.w.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if g.closed != 1 {
		t.Errorf("the guest was closed %d times", g.closed)
	}
	want := to(1, 100).Frame()
	well.inject(want)
	waitFor(t, "a frame", func() bool { return well.frames(other) == 1 })
}

// on2 wakes a worker that is about to panic.
func (r *rig) on2(t *testing.T) {
	t.Helper()
	if err := r.w.do(func() {}); err != nil && !errors.Is(err, ErrFault) {
		t.Fatal(err)
	}
}

// A bug may be in a guest, and may show again when Stop closes what the worker left.
func TestAGuestThatPanicsIsClosedOnceAndTheOthersToo(t *testing.T) {
	for _, in := range []string{"Put", "Close"} {
		r := running(t)
		a, b := r.add(1), r.add(2)
		r.on(func() { a.boom = in })
		if in == "Put" {
			r.inject(to(1, 100).Frame())
		} else if err := r.w.StopPort(1); !errors.Is(err, ErrFault) {
			t.Errorf("stop the port: %v", err)
		}
		waitFor(t, "the worker's end", func() bool { return r.w.Fault() != nil })
		a.boom = "Close"
		if err := r.w.Stop(); err != nil {
			t.Errorf("%s: stop: %v", in, err)
		}
		if b.closed != 1 {
			t.Errorf("%s: the other guest was closed %d times", in, b.closed)
		}
	}
}

// A message that was carried out is not called lost because the worker ended right behind it.
func TestAMessageThatWasDoneIsDone(t *testing.T) {
	for range 60 {
		r := running(t)
		var wg sync.WaitGroup
		ran := false
		wg.Go(func() {
			err := r.w.do(func() { ran = true })
			if (err == nil) != ran {
				t.Errorf("carried out: %v, and it says %v", ran, err)
			}
		})
		if err := r.w.Stop(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}

// A worker that hangs is reported, and its memory is to stay.
func TestAWorkerThatHangsIsStuck(t *testing.T) {
	r := running(t)
	r.add(1)
	release, entered := make(chan struct{}), make(chan struct{})
	go func() {
		_ = r.w.do(func() { close(entered); <-release })
	}()
	<-entered
	var wg sync.WaitGroup
	g := r.newGuest()
	for _, call := range []func() error{
		func() error { return r.w.Add(PortConfig{Index: 5}) },
		func() error { return r.w.StartPort(1, g, nil, rules()) },
		func() error { return r.w.SetRules(1, flowtable.PortConfig{Hold: -1}) },
		func() error { return r.w.CheckGuest(1, false) },
		func() error { _, err := r.w.Senders(1); return err },
		r.w.Stop,
	} {
		wg.Go(func() {
			if err := call(); !errors.Is(err, ErrStuck) {
				t.Errorf("a stuck worker: %v", err)
			}
		})
	}
	wg.Wait()
	if g.closed != 0 {
		t.Error("a guest was closed that the worker may still take")
	}
	close(release) // it goes on, and what was sent to it still happens
	r.stop()
	if g.closed != 1 {
		t.Errorf("the guest was closed %d times", g.closed)
	}
}

// Messages that find no room in the queue of messages are not waited for without end.
func TestAStuckWorkersQueueOfMessagesMayBeFull(t *testing.T) {
	r := running(t)
	release, entered := make(chan struct{}), make(chan struct{})
	go func() {
		_ = r.w.do(func() { close(entered); <-release })
	}()
	<-entered
	var wg sync.WaitGroup
	for range cap(r.w.cmds) + 3 {
		wg.Go(func() {
			if err := r.w.Drain(); !errors.Is(err, ErrStuck) {
				t.Errorf("a stuck worker: %v", err)
			}
		})
	}
	wg.Wait()
	close(release)
}

// A worker's goroutine, its thread and its descriptors are gone after Stop, however it ended.
func TestNothingIsLeftOf100Workers(t *testing.T) {
	cycle := func(i int) {
		wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(wake)
		r := newRig(t, func(c *Config) { c.WakeFD, c.Clock = wake, nil })
		r.w.Start()
		for index := range uint32(3) {
			r.add(index)
		}
		r.inject(train(to(1, 1000), 4)...)
		if err := errors.Join(r.w.StopPort(0), r.w.Remove(1)); err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			r.nic.set(func(n *fakeNIC) { n.boom = "a bug" })
			r.on2(t)
		}
		if err := r.w.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, p := range r.w.list {
			if p.guest != nil {
				t.Fatal("a guest is open")
			}
		}
	}
	cycle(0)
	goroutines, fds := runtime.NumGoroutine(), openFDs(t)
	for i := range 100 {
		cycle(i)
	}
	waitFor(t, "the last goroutine's end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := openFDs(t); n > fds {
		t.Errorf("%d descriptors more", n-fds)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestNewRefusesWhatTheTableRefuses(t *testing.T) {
	log := newRig(t).w.cfg.Log
	if _, err := New(Config{ID: 7, NIC: newFakeNIC(t, 8), Slots: -1, Chunks: 8, Log: log}); !errors.Is(err, flowtable.ErrConfig) || !bytes.Contains([]byte(err.Error()), []byte("worker 7")) {
		t.Errorf("no slots: %v", err)
	}
}
