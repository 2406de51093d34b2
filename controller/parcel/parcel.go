package parcel

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Version is the form of the parcels that this package writes. It reads every form up to it.
const Version = 1

// Errors to test for with errors.Is. Each is wrapped with which descriptor, or what of the parcel.
var (
	ErrNewer   = errors.New("it is of a newer version")
	ErrCut     = errors.New("it is not whole")
	ErrDamaged = errors.New("it cannot be read")
	ErrMissing = errors.New("a descriptor is missing")
	ErrTwice   = errors.New("a descriptor is there twice")
	ErrKind    = errors.New("a descriptor is of another kind")
)

// File is one descriptor and its name in the state.
type File struct {
	Name string
	Kind Kind
	FD   int // close-on-exec; the parcel's until Take
}

// Parcel is a state with its descriptors. It is used by one goroutine.
type Parcel struct {
	Version int
	From    string // the version of the product that packed it
	State   json.RawMessage
	files   map[string]*File
	order   []string // of the names, as they were put in
}

// New returns an empty parcel of this version.
func New(from string) *Parcel {
	return &Parcel{Version: Version, From: from, files: map[string]*File{}}
}

// Put takes a descriptor over under a name of the caller's choice. Error: ErrTwice, and the descriptor is closed.
func (p *Parcel) Put(name string, fd int) error {
	if p.files[name] != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("parcel: %s: %w", name, ErrTwice)
	}
	p.files[name] = &File{Name: name, Kind: KindOf(fd), FD: fd}
	p.order = append(p.order, name)
	return nil
}

// Keep puts a duplicate of a borrowed descriptor in and returns the name that it made for it: what, or with a number behind where that is
// taken. So two parcels have one name for the same thing.
func (p *Parcel) Keep(what string, fd int) (name string, err error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return "", fmt.Errorf("parcel: %s: %w", what, err)
	}
	name = what
	for n := 2; p.files[name] != nil; n++ {
		name = fmt.Sprintf("%s.%d", what, n)
	}
	return name, p.Put(name, dup)
}

// Take hands a descriptor to the caller, who closes it. Errors: ErrMissing, also when it was taken before, and ErrKind.
func (p *Parcel) Take(name string, kind Kind) (fd int, err error) {
	f := p.files[name]
	switch {
	case f == nil:
		return -1, fmt.Errorf("parcel: %q: %w", name, ErrMissing)
	case f.Kind != kind:
		return -1, fmt.Errorf("parcel: %q is %s, not %s: %w", name, f.Kind, kind, ErrKind)
	}
	delete(p.files, name)
	return f.FD, nil
}

// TakeAny is Take for a descriptor whose kind its taker looks at. Error: ErrMissing.
func (p *Parcel) TakeAny(name string) (fd int, err error) {
	f := p.files[name]
	if f == nil {
		return -1, fmt.Errorf("parcel: %q: %w", name, ErrMissing)
	}
	return p.Take(name, f.Kind)
}

// Files lists what has not been taken, in the order in which it was put in.
func (p *Parcel) Files() (out []File) {
	for _, name := range p.order {
		if f := p.files[name]; f != nil {
			out = append(out, *f)
		}
	}
	return out
}

// Close closes what nobody has taken.
func (p *Parcel) Close() {
	for name, f := range p.files {
		_ = unix.Close(f.FD)
		delete(p.files, name)
	}
}
