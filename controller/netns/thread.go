package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadPath is the calling thread's namespace, not the process's: after setns they differ.
const threadPath = "/proc/thread-self/ns/net"

// Do runs fn with its thread inside the namespace and returns fn's error. Sockets that fn opens stay in the namespace;
// goroutines that it starts do not. A panic in fn, and a runtime.Goexit (testing's FailNow), go on in the caller.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("namespace: %s: enter: %w", n.path, err)
		}
		return fn()
	})
}

// outcome is how the function on the other goroutine ended.
type outcome struct {
	err      error
	returned bool // false: runtime.Goexit
	panicked bool
	value    any
}

// onThread runs fn on a locked thread that may change its namespace, and puts that thread back before it is reused.
//
// The work is on another goroutine than the caller's because a thread that cannot go back must end, and the only way to
// end a thread is to let a goroutine end while it is locked to it.
func onThread(fn func() error) error {
	done := make(chan outcome, 1)
	var lost error
	go func() {
		var o outcome
		runtime.LockOSThread()
		home, err := os.Open(threadPath)
		if err != nil {
			runtime.UnlockOSThread()
			done <- outcome{err: fmt.Errorf("namespace: current: %w", err), returned: true}
			return
		}
		defer func() {
			if !o.returned {
				if v := recover(); v != nil {
					o.panicked, o.value = true, v
				}
			}
			lost = unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
			home.Close()
			if lost == nil {
				runtime.UnlockOSThread()
			}
			done <- o
		}()
		o.err = fn()
		o.returned = true
	}()
	o := <-done
	switch {
	case o.panicked:
		panic(o.value)
	case !o.returned:
		runtime.Goexit()
	}
	if lost != nil {
		return errors.Join(o.err, fmt.Errorf("namespace: %w: %w", ErrThreadLost, lost))
	}
	return o.err
}
