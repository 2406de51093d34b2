package controller

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
)

// lockPins takes the folder of the pins for this controller, and makes it if need be; nil where nothing can be pinned. ErrHeld when another
// controller has it: two that shared the flow maps would each take the other's VMs for gone, and their counters away.
func lockPins(dir string) (*os.File, error) {
	if !bpf.OnBPFFS(dir) {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pins: %w: choose another directory with --bpffs", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("pins: %w: choose another directory with --bpffs", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("pins: %s: %w: stop it, or use another --bpffs", dir, ErrHeld)
		}
		return nil, fmt.Errorf("pins: lock %s: %w", dir, err)
	}
	return f, nil
}

// unlockPins gives the folder free, whoever has a duplicate of the descriptor; nil is none.
func unlockPins(f *os.File) {
	if f != nil {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		_ = f.Close()
	}
}
