package vduse

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/vring"
)

var errForeign = errors.New("a buffer outside of the bounce pages")

// relay hands the chains of one ring of the kernel's driver to the back-end and gives them back. Their buffers stay where they are:
// in the bounce pages, which have an address in the front-end's memory as well. It belongs to the goroutine of run.
type relay struct {
	dev    vring.Device // towards the kernel's driver
	ring   *user.Ring   // towards the back-end
	kick   *user.EventFD
	stop   int // eventfd, readable when it shall end; never drained
	inject func() error

	bounce uint64 // address of the bounce pages in this process
	gpa    uint64 // and in the guest memory that the back-end sees

	chain vring.Chain
	bufs  []vring.Buffer
	used  []vring.Used
}

// run moves chains until stop is readable.
func (r *relay) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		there, err := r.forward()
		if err != nil {
			return fmt.Errorf("to the back-end: %w", err)
		}
		back, err := r.backward()
		if err != nil {
			return fmt.Errorf("to the driver: %w", err)
		}
		if there+back > 0 && !r.stopped(0) {
			continue
		}
		// Both sides are asked for a signal before they are looked at once more (virtio 1.2, section 2.7.10).
		more := r.dev.EnableNotify()
		if r.ring.Driver.EnableCalls() || more {
			if r.stopped(0) {
				return nil
			}
			continue
		}
		if r.stopped(-1) {
			return nil
		}
		r.dev.DisableNotify()
		r.ring.Driver.DisableCalls()
	}
}

// stopped waits for a signal of either side, at most so many milliseconds, -1 for ever, and says whether it is that of the end.
func (r *relay) stopped(wait int) bool {
	fds := [...]unix.PollFd{
		{Fd: int32(r.stop), Events: unix.POLLIN},
		{Fd: int32(r.kick.FD()), Events: unix.POLLIN},
		{Fd: int32(r.ring.CallFD()), Events: unix.POLLIN},
	}
	_, _ = unix.Poll(fds[:], wait) // one that is interrupted looks at the rings once more
	r.kick.Drain()
	r.ring.AckCall()
	return fds[0].Revents != 0
}

// forward posts what the driver has made available.
func (r *relay) forward() (n int, err error) {
	for ; ; n++ {
		ok, err := r.dev.Next(&r.chain)
		if err != nil {
			return n, err
		}
		if !ok {
			break
		}
		r.bufs = r.bufs[:0]
		for _, b := range r.chain.Readable {
			r.bufs = append(r.bufs, vring.Buffer{Addr: address(b), Len: uint32(len(b))})
		}
		for _, b := range r.chain.Writable {
			r.bufs = append(r.bufs, vring.Buffer{Addr: address(b), Len: uint32(len(b)), Writable: true})
		}
		for i := range r.bufs {
			b := &r.bufs[i]
			at := b.Addr - r.bounce
			if at >= bounceSize {
				return n, errForeign
			}
			b.Addr = r.gpa + at
		}
		// The ring is never full: it has no fewer descriptors than the driver's, and a chain takes one.
		if err := r.ring.Driver.Add(r.bufs, uint64(r.chain.Head)); err != nil {
			return n, err
		}
	}
	if r.ring.Driver.Publish() {
		r.ring.Kick()
	}
	return n, nil
}

// backward gives the driver what the back-end is done with. The back-end shows all buffers of a frame at once, and so they have to
// reach the driver: nothing is published before the last one that is visible has been taken.
func (r *relay) backward() (n int, err error) {
	r.used = r.used[:0]
	for {
		head, written, ok := r.ring.Driver.Used()
		if !ok {
			break
		}
		r.used = append(r.used, vring.Used{Head: vring.Head(head), Written: written})
	}
	if err := r.ring.Driver.Err(); err != nil {
		return 0, err
	}
	r.dev.Push(r.used)
	if r.dev.Publish() {
		err = r.inject()
	}
	return len(r.used), err
}
