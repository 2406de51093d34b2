package user

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A counter that a read does not empty would keep a worker awake for ever.
func TestAKickThatNeverFallsSilentIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags int
		value uint64
		bad   bool
	}{
		{"counter", 0, 0, false},
		{"counter with kicks", 0, 7, false},
		{"full counter", 0, ^uint64(0) - 1, false},
		{"semaphore", unix.EFD_SEMAPHORE, 0, true},
		{"semaphore with a kick", unix.EFD_SEMAPHORE, 1, true},
		{"full semaphore", unix.EFD_SEMAPHORE, ^uint64(0) - 1, true},
	} {
		counter := func() int {
			fd, err := unix.Eventfd(0, tt.flags|unix.EFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			if tt.value > 0 {
				if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, tt.value)); err != nil {
					t.Fatal(err)
				}
			}
			return fd
		}
		e, err := AdoptKick(counter())
		if bad := err != nil; bad != tt.bad || bad && !errors.Is(err, ErrBadFD) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil {
			if tt.value > 0 && e.Drain() == 0 {
				t.Errorf("%s: its kicks are lost", tt.name)
			}
			_ = e.Close()
		}
		// On kernels that do not say, it is tried.
		e, err = AdoptEventFD(counter())
		if err != nil {
			t.Fatal(err)
		}
		if got := e.semaphoreByTrial(); got != tt.bad {
			t.Errorf("%s: tried, %v", tt.name, got)
		} else if !got && e.Drain() == 0 {
			t.Errorf("%s: its kicks are lost in the trial", tt.name)
		}
		_ = e.Close()
	}
}

func TestTheKernelsWordOnASemaphore(t *testing.T) {
	for info, want := range map[string][2]bool{
		"pos:\t0\neventfd-count:                1\neventfd-id: 3\n":     {true, false},
		"eventfd-count: 0\neventfd-id: 3\neventfd-semaphore: 0\n":       {false, true},
		"eventfd-count: 0\neventfd-id: 3\neventfd-semaphore: 1\nmore\n": {true, true},
		"": {true, false},
	} {
		if is, known := semaphoreByInfo(info); known != want[1] || known && is != want[0] {
			t.Errorf("%q: %v, %v", info, is, known)
		}
	}
	e, err := NewEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(e.FD()))
	if err != nil {
		t.Skip(err)
	}
	if is, known := semaphoreByInfo(string(info)); is && known {
		t.Error("an ordinary counter counts as a semaphore")
	}
}
