package user

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// within fails the test when fn does not return; a blocked thread cannot be ended, so the process has to.
func within(t *testing.T, what string, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s waits", what)
	}
}

// callers are a Caller as it is here and one for a kernel without asynchronous I/O, or where another user has all of it.
func callers(t *testing.T) map[string]*Caller {
	t.Helper()
	all := map[string]*Caller{}
	for _, name := range []string{"asynchronous", "fallback"} {
		c, err := NewCaller()
		if err != nil {
			t.Fatal(err)
		}
		all[name] = c
	}
	if all["asynchronous"].ctx == 0 {
		t.Error("io_setup is refused here")
	}
	fallback := all["fallback"]
	ctx := fallback.ctx
	fallback.ctx = 0
	t.Cleanup(func() {
		fallback.ctx = ctx
		for _, c := range all {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return all
}

func TestACallNeverWaitsForAPeerThatBlocksItsCounter(t *testing.T) {
	for name, c := range callers(t) {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		e, err := AdoptEventFD(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		full := binary.NativeEndian.AppendUint64(nil, ^uint64(0)-1)
		if _, err := unix.Write(fd, full); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			within(t, name, func() error { return c.Call(e) })
		}
		other, err := NewEventFD()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 * ringerCalls { // what else the peer has may wait, we do not
			within(t, name, func() error { return c.Call(other) })
		}
		if e.Drain() < ^uint64(0)-1 {
			t.Errorf("%s: counter fell", name)
		}
		within(t, name, func() error { return c.Call(e) })
		if !rings(e) || !rings(other) {
			t.Errorf("%s: no call after the peer has made room", name)
		}
		_ = e.Close()
		_ = other.Close()
	}
}

// rings waits for a call.
func rings(e *EventFD) bool {
	poll := []unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 10000)
	for err == unix.EINTR { // the runtime's own signal
		n, err = unix.Poll(poll, 10000)
	}
	return err == nil && n == 1 && e.Drain() > 0
}

// The last call of many is the one that a guest may sleep for.
func TestNoCallWithoutAsynchronousIOIsLost(t *testing.T) {
	c := callers(t)["fallback"]
	e, err := NewEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for i := range 1000 {
		if err := c.Call(e); err != nil {
			t.Fatal(err)
		}
		if !rings(e) {
			t.Fatalf("call %d was not made", i)
		}
	}
}

// A peer holds the goroutine that writes, and goes away: neither the goroutine nor a descriptor stays.
func TestACallerThatAPeerHoldsLeavesNothingBehind(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	before, routines := count(), runtime.NumGoroutine()
	c, err := NewCaller()
	if err != nil {
		t.Fatal(err)
	}
	if ctx := c.ctx; ctx != 0 {
		defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
		c.ctx = 0
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	full := binary.NativeEndian.AppendUint64(nil, ^uint64(0)-1)
	if _, err := unix.Write(fd, full); err != nil {
		t.Fatal(err)
	}
	e := &EventFD{fd: fd}
	for range 10 {
		within(t, "call", func() error { return c.Call(e) })
		_ = unix.Close(e.fd)
		if e.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		_, _ = unix.Write(e.fd, full)
	}
	_ = e.Close()
	within(t, "close", c.Close)
	for end := time.Now().Add(10 * time.Second); count() > before || runtime.NumGoroutine() > routines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors of %d, %d goroutines of %d", count(), before, runtime.NumGoroutine(), routines)
		}
	}
}

func TestEveryCallCounts(t *testing.T) {
	for name, c := range callers(t) {
		const workers, each = 4, 1000 // far more than the kernel keeps completions
		var events [workers]*EventFD
		var wg sync.WaitGroup
		for i := range events {
			var err error
			if events[i], err = NewEventFD(); err != nil {
				t.Fatal(err)
			}
			defer events[i].Close()
			wg.Go(func() {
				for range each {
					if err := c.Call(events[i]); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		wg.Wait()
		for _, e := range events {
			if c.Asynchronous() {
				if n := e.Drain(); n != each {
					t.Errorf("%s: %d of %d calls", name, n, each)
				}
			} else if !rings(e) { // several may be one
				t.Errorf("%s: no call", name)
			}
		}
		if n := testing.AllocsPerRun(100, func() { _ = c.Call(events[0]) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestACallOfWhatIsNoCounterIsAnError(t *testing.T) {
	for name, c := range callers(t) {
		if err := c.Call(&EventFD{fd: 1 << 20}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
