package tap

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// arena is anonymous memory outside of the Go heap, handed out piece by piece and freed as a whole. The kernel's worker reads and
// writes it while Go looks away, so it must not move nor be collected.
type arena struct {
	mem  []byte
	used int
}

func newArena(size int) (*arena, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("ring memory: %d bytes: %w", size, os.NewSyscallError("mmap", err))
	}
	return &arena{mem: mem}, nil
}

// take hands out n bytes that begin on a cache line; the arena was made large enough, by cells.
func (a *arena) take(n int) []byte {
	b := a.mem[a.used : a.used+n : a.used+n]
	a.used += cells(n)
	return b
}

// cells rounds n bytes up to whole cache lines.
func cells(n int) int { return (n + 63) &^ 63 }

func (a *arena) free() error { return unix.Munmap(a.mem) }
