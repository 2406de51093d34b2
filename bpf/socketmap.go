package bpf

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// SocketMap is an XSKMAP of somebody else's XDP program, which sends the frames of each queue to the socket that it has at the queue's
// number. Its owner pins it in a BPF file system; that is all that is known of the program.
//
// The kernel shows nobody what is at a place, and takes a socket out of it that is closed by everybody who had it. So what can be
// found out is whether a place is free or one's own: by putting the socket there.
type SocketMap struct {
	m  *ebpf.Map
	id uint32
}

// OpenSocketMap opens a pinned map. Errors: ErrNoMap, also for a pin that is another thing; ErrPermission.
func OpenSocketMap(path string) (*SocketMap, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: nothing is pinned there", ErrNoMap)
	case errors.Is(err, fs.ErrPermission) && inBPFFS(path): // the kernel says the same of a file elsewhere
		return nil, fmt.Errorf("%w: %w", ErrPermission, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoMap, err)
	}
	return socketMap(m)
}

// AdoptSocketMap is OpenSocketMap by descriptor, which is taken over, also with an error. Error: ErrParts.
func AdoptSocketMap(fd int) (*SocketMap, error) {
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("xskmap: %w: %w", ErrParts, err)
	}
	s, err := socketMap(m)
	if err != nil {
		return nil, fmt.Errorf("xskmap: %w: %w", ErrParts, err)
	}
	return s, nil
}

// inBPFFS tells whether a path lies in a BPF file system, as pins do.
func inBPFFS(path string) bool {
	var at unix.Statfs_t
	return unix.Statfs(path, &at) == nil && at.Type == unix.BPF_FS_MAGIC
}

func socketMap(m *ebpf.Map) (*SocketMap, error) {
	if m.Type() != ebpf.XSKMap {
		err := fmt.Errorf("%w: it is of type %v", ErrNoMap, m.Type())
		return nil, errors.Join(err, m.Close())
	}
	return &SocketMap{m: m, id: mapID(m)}, nil
}

// ID is the kernel's number of the map, 0 when it does not tell.
func (s *SocketMap) ID() uint32 { return s.id }

// FD is borrowed, valid until Close.
func (s *SocketMap) FD() int { return s.m.FD() }

// Places is how many sockets it has room for: their keys are below that.
func (s *SocketMap) Places() int { return int(s.m.MaxEntries()) }

// Take puts a socket at a place, or leaves it there. Errors: ErrPlaceTaken: another socket is there; ErrNoDevice: there is no such place.
func (s *SocketMap) Take(place, fd int) error {
	if place < 0 || place >= s.Places() {
		return fmt.Errorf("xskmap: entry %d of %d: %w", place, s.Places(), ErrNoDevice)
	}
	err := s.m.Update(uint32(place), uint32(fd), ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		err = ErrPlaceTaken
	}
	if err != nil {
		return fmt.Errorf("xskmap: entry %d: %w", place, err)
	}
	return nil
}

// Leave takes a socket out of a place, and leaves another one that is there by now. Somebody who puts one there between two system calls
// of this loses it.
func (s *SocketMap) Leave(place, fd int) error {
	err := s.Take(place, fd)
	if errors.Is(err, ErrPlaceTaken) {
		return nil
	}
	if err == nil {
		err = s.m.Delete(uint32(place))
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("xskmap: entry %d: %w", place, err)
	}
	return nil
}

// Close leaves the sockets where they are. Closing twice is no error.
func (s *SocketMap) Close() error {
	if s == nil {
		return nil
	}
	return s.m.Close()
}
