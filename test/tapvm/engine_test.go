package tapvm

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fullEngine takes nothing that the guest sends.
type fullEngine struct {
	userspace
	room int // eventfd
}

func (f *fullEngine) full() bool { return true }
func (f *fullEngine) fds() []int { return []int{f.room} }

// What waits in the guest's tap is no reason to wake up while there is no room for it; room is.
func TestAFullRingIsWaitedFor(t *testing.T) {
	var fds [3]int // stop, the guest's tap, room
	for i := range fds {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds[i] = fd
	}
	signal := func(fd int) {
		if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	vm := &VM{stop: fds[0], inner: &Tap{FD: fds[1]}, outer: &Tap{Name: "none", FD: -1}, engine: &fullEngine{room: fds[2]}}
	signal(fds[1])
	for _, room := range []bool{false, true} {
		if room {
			signal(fds[2])
		}
		from := time.Now()
		if stop, err := vm.sleep(); stop || err != nil {
			t.Fatal(stop, err)
		}
		if slept := time.Since(from) > 100*time.Millisecond; slept == room {
			t.Errorf("room %v: slept for %v", room, time.Since(from))
		}
	}
}
