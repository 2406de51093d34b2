package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	lockFile  = "lock"
	stateFile = "state.json"
	undoFile  = "undo.jsonl"
)

// Dir is the locked state directory. Its methods are safe for concurrent use.
type Dir struct {
	path     string
	lock     *os.File
	problems []error // of the undo list, as it was read

	mu          sync.Mutex
	undo        []entry
	undoDirty   bool  // the file does not hold undo
	undoDamaged bool  // the file has lines that undo lacks
	refused     error // why state.json must not be written over: it was not understood
}

// Open makes the directory if need be, takes its lock (ErrLocked) and reads the undo list. It changes no file.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, unusable(err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, unusable(err)
	}
	return openLocked(path, lock)
}

// unusable says what to do about a directory that cannot be had.
func unusable(err error) error {
	remedy := "choose another directory with --state"
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		remedy = "run it as root"
	}
	return fmt.Errorf("state: %w: %s", err, remedy)
}

// Adopt is Open with the lock that another process holds and hands over, by a descriptor that is taken over, also with an error. Until
// that process has closed its own, both hold it: only one of them may write. Error: ErrLocked too when it is another directory's.
func Adopt(path string, fd int) (*Dir, error) {
	lock := os.NewFile(uintptr(fd), lockFile)
	given, err := lock.Stat()
	if err == nil {
		var own os.FileInfo
		if own, err = os.Stat(filepath.Join(path, lockFile)); err == nil && !os.SameFile(given, own) {
			err = fmt.Errorf("%s: %w: the lock handed over is another directory's", path, ErrLocked)
		}
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("state: %w", err)
	}
	return openLocked(path, lock)
}

// openLocked takes the lock, which a descriptor of another process may hold as well, and reads the undo list.
func openLocked(path string, lock *os.File) (*Dir, error) {
	d := &Dir{path: path, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state: %s: %w: stop it, or use another --state", path, ErrLocked)
		}
		return nil, fmt.Errorf("state: lock %s: %w", path, err)
	}
	if err := d.readUndo(); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// LockFD is the lock's descriptor, for Adopt in another process. Borrowed, valid until Close.
func (d *Dir) LockFD() int { return int(d.lock.Fd()) }

// Close gives the lock back.
func (d *Dir) Close() error { return d.lock.Close() }

// readUndo reads the undo list. Without its file there may be a state.json of schema 1, which had the list inside; once the file
// is there it alone counts, or what was undone already would be undone again after a crash between the two writes.
func (d *Dir) readUndo() error {
	name := filepath.Join(d.path, undoFile)
	b, err := os.ReadFile(name)
	if err == nil {
		var problems []error
		d.undo, problems = parseUndo(b)
		for _, p := range problems {
			d.problems = append(d.problems, fmt.Errorf("undo list %s: %w", name, p))
			d.undoDamaged = d.undoDamaged || errors.Is(p, ErrDamaged)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state: undo list: %w", err)
	}
	b, err = os.ReadFile(filepath.Join(d.path, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return d.adopt(v1Changes(b))
}

// adopt takes the undo list of schema 1 over. It is written as a list of its own with the first change of it.
func (d *Dir) adopt(old []Change) error {
	for i := range old {
		old[i].ID = uint64(i) + 1
		e, err := newEntry(old[i])
		if err != nil {
			return err
		}
		d.undo = append(d.undo, e)
	}
	d.undoDirty = len(old) > 0
	return nil
}

// Load reads state.json; an absent one is an empty state. ErrNewer and ErrDamaged name the file and what to do; it is then left
// alone, also by Save. Guessing would attach VMs to networks that they do not belong to.
func (d *Dir) Load() (State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := filepath.Join(d.path, stateFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	var s State
	if err == nil {
		s, err = decode(b)
	}
	switch {
	case err == nil:
		d.refused = nil
		return s, nil
	case errors.Is(err, ErrNewer):
		err = fmt.Errorf("state: %s: %w: run that version, or move the file away to start without VMs", name, err)
	case errors.Is(err, ErrDamaged):
		err = fmt.Errorf("state: %s: %w: mend the file, or move it away to start without VMs", name, err)
	default:
		err = fmt.Errorf("state: %w", err)
	}
	d.refused = err
	return State{}, err
}

// Check says why the state.json of a directory, which may be another process's, could not be gone on with: the errors of Load.
func Check(path string) error {
	_, err := (&Dir{path: path}).Load()
	return err
}

// Save replaces state.json, all of it. ErrNotSaved: the file is what it was before. A file that Load refused is not replaced.
func (d *Dir) Save(s State) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused != nil {
		return fmt.Errorf("%w: %w", d.refused, ErrNotSaved)
	}
	b, err := encode(s)
	if err != nil {
		return fmt.Errorf("state: %w: %w", ErrNotSaved, err)
	}
	// A list adopted from schema 1 must have its own file before the file that held it is replaced.
	if err := d.flush(); err != nil {
		return err
	}
	return d.replace(stateFile, b)
}

// replace writes a file beside the old one, flushes it, gives it the old one's name and flushes the folder. Only the holder of
// the lock writes here, so one name for the new file does, and what a crash left under it is written over.
func (d *Dir) replace(name string, b []byte) error {
	path := filepath.Join(d.path, name)
	tmp := path + ".new"
	err := writeSynced(tmp, b)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // on a full disk it only takes room
		return fmt.Errorf("state: %w: %w: make room or mend %s", ErrNotSaved, err, d.path)
	}
	if err := syncFolder(d.path); err != nil {
		return fmt.Errorf("state: %w: %w", ErrNotSaved, err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// keepAside gives a file a second name. Best effort: the file is about to be replaced because of something that matters more.
func (d *Dir) keepAside(name string) {
	path := filepath.Join(d.path, name)
	_ = os.Remove(path + ".damaged")
	_ = os.Link(path, path+".damaged")
}
