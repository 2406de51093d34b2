package xsk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Ahead is the memory of a socket that is another's still, mapped before that stops: to bring all of its pages in takes milliseconds.
type Ahead struct {
	file fileID
	mem  []byte
}

// fileID is the identity of a memory file.
type fileID struct{ dev, ino uint64 }

func fileOf(fd int) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, explain("UMEM memory", err)
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}

// MapAhead maps the UMEM of a socket that was opened with c, for Config.Ahead. The descriptor stays the caller's. Errors: ErrConfig;
// ErrParts: it is no such memory.
func MapAhead(c Config, umem int) (*Ahead, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := checkMemory(umem, c.umemSize()); err != nil {
		return nil, fmt.Errorf("xsk: %s: %w: %w", umemName, ErrParts, err)
	}
	file, err := fileOf(umem)
	if err != nil {
		return nil, err
	}
	mem, err := mapWhole(umem, c.umemSize())
	if err != nil {
		return nil, explain("UMEM memory", err)
	}
	return &Ahead{file, mem}, nil
}

// take gives the mapping away, once, if it is of that file and that long; nil otherwise, and for nil.
func (a *Ahead) take(fd, size int) []byte {
	if a == nil || len(a.mem) != size {
		return nil
	}
	if file, err := fileOf(fd); err != nil || file != a.file {
		return nil
	}
	mem := a.mem
	a.mem = nil
	return mem
}

// Close unmaps what no Socket has taken.
func (a *Ahead) Close() error {
	if a == nil || a.mem == nil {
		return nil
	}
	mem := a.mem
	a.mem = nil
	return unix.Munmap(mem)
}

func mapWhole(fd, size int) ([]byte, error) {
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}
