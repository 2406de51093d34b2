package user

import (
	"encoding/binary"
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

// callers are a Caller as it is here and one for a kernel without asynchronous I/O.
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
		if e.Drain() < ^uint64(0)-1 {
			t.Errorf("%s: counter fell", name)
		}
		within(t, name, func() error { return c.Call(e) })
		if n := e.Drain(); n != 1 {
			t.Errorf("%s: %d, want 1", name, n)
		}
		_ = e.Close()
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
			if n := e.Drain(); n != each {
				t.Errorf("%s: %d of %d calls", name, n, each)
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
