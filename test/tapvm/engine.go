package tapvm

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// budget is how many frames of one direction go before the other has its turn.
const budget = 64

// errInvalid is what a tap says to a header that it cannot make sense of.
var errInvalid error = unix.EINVAL

// engine is what moves frames between the host's tap and the guest's.
type engine interface {
	// receive hands up to budget packets for the guest to fn, header (12 bytes) first, and returns how many it took.
	receive(fn func(packet []byte)) (int, error)
	// send moves up to budget frames from the guest's tap to the host's.
	send(from *Tap, s *sent) (int, error)
	// full says that nothing the guest sends can be taken now; one of fds tells when it can.
	full() bool
	// fds are what to wait for, besides the guest's tap; arm says that there is something already.
	fds() []int
	arm() bool
	ack()
	close() error
}

// sent is what came of frames that the guest sent.
type sent struct{ frames, bytes, lost uint64 }

// userspace reads and writes the tap's file, as QEMU does with vhost=off.
type userspace struct {
	tap       *Tap
	bufferLen int
	buf       []byte
}

func (u *userspace) receive(fn func(packet []byte)) (int, error) {
	skip := virtio.HdrSize - u.tap.HdrLen // a tap without header: QEMU puts an empty one before the frame
	for i := range budget {
		n, err := u.tap.Read(u.buf[skip:])
		if n == 0 || err != nil {
			return i, err
		}
		clear(u.buf[:skip])
		packet := u.buf[:skip+n]
		buffers := (len(packet) + u.bufferLen - 1) / u.bufferLen
		packet[10], packet[11] = byte(buffers), byte(buffers>>8) // the device's to fill
		fn(packet)
	}
	return budget, nil
}

func (u *userspace) send(from *Tap, s *sent) (int, error) {
	for i := range budget {
		n, err := from.Read(u.buf)
		if n == 0 || err != nil {
			return i, err
		}
		s.count(n)
		if err := u.tap.Write(u.buf[virtio.HdrSize-u.tap.HdrLen : n]); err != nil {
			s.lost++
		}
	}
	return budget, nil
}

func (s *sent) count(packet int) {
	s.frames++
	s.bytes += uint64(packet - virtio.HdrSize)
}

func (u *userspace) full() bool { return false }
func (u *userspace) fds() []int { return []int{u.tap.FD} }
func (u *userspace) arm() bool  { return false }
func (u *userspace) ack()       {}
func (u *userspace) close() error {
	return nil
}

// vhost lets the kernel read and write the tap, as QEMU does with vhost=on.
type vhost struct{ guest *tap.Guest }

func (v *vhost) receive(fn func(packet []byte)) (int, error) { return v.guest.Receive(budget, fn) }

func (v *vhost) send(from *Tap, s *sent) (int, error) {
	defer v.guest.Kick()
	for i := range budget {
		b := v.guest.Buffer()
		if b == nil {
			return i, nil // the ring is full: the frames wait in the guest's tap
		}
		n, err := from.Read(b)
		if n == 0 || err != nil {
			return i, err
		}
		b[10], b[11] = 0, 0
		s.count(n)
		if err := v.guest.Post(n); err != nil {
			return i, err
		}
	}
	return budget, nil
}

func (v *vhost) fds() []int {
	rx, tx := v.guest.CallFDs()
	return []int{rx, tx}
}
func (v *vhost) full() bool   { return v.guest.Buffer() == nil }
func (v *vhost) arm() bool    { return v.guest.Arm(v.full()) }
func (v *vhost) ack()         { v.guest.Ack() }
func (v *vhost) close() error { return v.guest.Close() }

// retry is how long the loop lets a tap alone whose link is down.
const retry = 10 * time.Millisecond

// loop moves frames both ways until stop is readable or a tap has gone.
func (vm *VM) loop() error {
	for {
		n, err := vm.receive()
		if err == nil {
			var m int
			m, err = vm.send()
			n += m
		}
		switch {
		case errors.Is(err, unix.EBADFD): // the device was deleted under the open file
			return fmt.Errorf("%w: %w", ErrTapGone, err)
		case errors.Is(err, unix.EIO), errors.Is(err, unix.EFAULT): // its link is down
			err, n = nil, 0
			if vm.stopped(retry) {
				return nil
			}
		}
		if err != nil {
			return err
		}
		if n > 0 {
			if vm.stopped(0) {
				return nil
			}
			continue
		}
		vm.drained()
		if vm.engine.arm() {
			vm.engine.ack()
			continue
		}
		stop, err := vm.sleep()
		vm.engine.ack()
		if stop || err != nil {
			return err
		}
	}
}

func (vm *VM) receive() (int, error) {
	return vm.engine.receive(func(packet []byte) {
		var h virtio.NetHdr
		_ = h.Decode(packet) // it has 12 bytes
		vm.mu.Lock()
		vm.stats.judge(h, packet[virtio.HdrSize:], vm.features)
		vm.mu.Unlock()
		if err := vm.inner.Write(packet); err != nil {
			vm.mu.Lock()
			vm.stats.wrote(err, &vm.stats.StackRefused)
			vm.mu.Unlock()
		}
	})
}

func (vm *VM) send() (int, error) {
	var s sent
	n, err := vm.engine.send(vm.inner, &s)
	if n > 0 {
		vm.mu.Lock()
		vm.stats.TxFrames += s.frames
		vm.stats.TxBytes += s.bytes
		vm.stats.Lost += s.lost
		vm.mu.Unlock()
	}
	return n, err
}

// sleep waits for either side.
func (vm *VM) sleep() (stop bool, err error) {
	fds := []unix.PollFd{{Fd: int32(vm.stop), Events: unix.POLLIN}, {Fd: int32(vm.inner.FD), Events: unix.POLLIN}}
	if vm.engine.full() {
		fds[1].Events = 0 // what waits there would make the sleep a spin
	}
	for _, fd := range vm.engine.fds() {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	n, err := unix.Poll(fds, 200)
	switch {
	case err != nil && err != unix.EINTR:
		return false, fmt.Errorf("wait: %w", err)
	case n == 0 && vm.outer.gone(): // with vhost in between, the deleted tap tells nobody
		return false, ErrTapGone
	}
	for _, fd := range fds[1:] {
		if fd.Revents&(unix.POLLERR|unix.POLLNVAL) != 0 && fd.Revents&unix.POLLIN == 0 {
			// A tap whose link is down says so at once and every time.
			return vm.stopped(retry), nil
		}
	}
	return fds[0].Revents != 0, nil
}

func (vm *VM) stopped(wait time.Duration) bool {
	fd := []unix.PollFd{{Fd: int32(vm.stop), Events: unix.POLLIN}}
	n, _ := unix.Poll(fd, int(wait.Milliseconds()))
	return n > 0
}
