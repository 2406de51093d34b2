package user

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// NamedFile is an open file with the name by which a state refers to it.
type NamedFile struct {
	Name string
	FD   int
}

// CloseFiles closes them all.
func CloseFiles(files []NamedFile) {
	for _, f := range files {
		_ = unix.Close(f.FD)
	}
}

// DupFiles returns duplicates, closed on exec, which are the caller's.
func DupFiles(files []NamedFile) ([]NamedFile, error) {
	dups := make([]NamedFile, 0, len(files))
	for _, f := range files {
		fd, err := unix.FcntlInt(uintptr(f.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			CloseFiles(dups)
			return nil, fmt.Errorf("duplicate of %s: %w", f.Name, err)
		}
		dups = append(dups, NamedFile{f.Name, fd})
	}
	return dups, nil
}

// Files are the files that came with a state. Whatever nobody has taken is closed
// by Close.
type Files struct {
	fds   map[string]int
	taken map[string]bool
}

// NewFiles takes files over, also on an error, and closes them then. The error is
// ErrParcel: a name or a descriptor that comes twice, or one that is not open.
func NewFiles(files []NamedFile) (*Files, error) {
	s := &Files{fds: make(map[string]int, len(files)), taken: map[string]bool{}}
	numbers := make(map[int]bool, len(files))
	var refused error
	for _, f := range files {
		var err error
		if _, ok := s.fds[f.Name]; ok {
			err = errors.New("comes twice")
		} else if numbers[f.FD] {
			err = fmt.Errorf("descriptor %d is another file, too", f.FD)
		} else if _, err = unix.FcntlInt(uintptr(f.FD), unix.F_SETFD, unix.FD_CLOEXEC); err == nil {
			s.fds[f.Name] = f.FD
		}
		if err != nil {
			if refused == nil {
				refused = fmt.Errorf("file %.64q: %w: %w", f.Name, ErrParcel, err)
			}
			if !numbers[f.FD] { // not closed twice
				_ = unix.Close(f.FD)
			}
		}
		numbers[f.FD] = true
	}
	if refused != nil {
		s.Close()
		return nil, refused
	}
	return s, nil
}

// Take returns the descriptor of that name, which is the caller's then. The error is
// ErrParcel: there is none, or it has been taken.
func (s *Files) Take(name string) (int, error) {
	fd, err := s.Borrow(name)
	if err == nil {
		delete(s.fds, name)
	}
	return fd, err
}

// Borrow returns the descriptor of that name, which stays open until Close.
func (s *Files) Borrow(name string) (int, error) {
	fd, ok := s.fds[name]
	switch {
	case s.taken[name] && !ok:
		return -1, fmt.Errorf("file %.64q is used twice: %w", name, ErrParcel)
	case !ok:
		return -1, fmt.Errorf("file %.64q is missing: %w", name, ErrParcel)
	}
	s.taken[name] = true
	return fd, nil
}

// HangUpRest ends the connections among what nobody has taken: their peers see
// it even where somebody has duplicates.
func (s *Files) HangUpRest() {
	for _, fd := range s.fds {
		if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listening == 0 {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	}
}

// Close closes what was not taken.
func (s *Files) Close() {
	for name, fd := range s.fds {
		_ = unix.Close(fd)
		delete(s.fds, name)
	}
}
