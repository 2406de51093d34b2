package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Purge removes the directory and all that was written to it, and gives the lock back. What is not ours stays, and the directory with it:
// left names it. Nothing is undone: whoever purges has looked at Changes before. d is of no use afterwards.
func (d *Dir) Purge() (left []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, name := range []string{stateFile, stateFile + ".new", undoFile, undoFile + ".new", undoFile + ".damaged", lockFile} {
		if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(d.path); errors.Is(err, unix.ENOTEMPTY) {
		entries, err := os.ReadDir(d.path)
		for _, e := range entries {
			left = append(left, filepath.Join(d.path, e.Name()))
		}
		errs = append(errs, err)
	} else if err != nil {
		errs = append(errs, err)
	}
	return left, errors.Join(append(errs, d.lock.Close())...)
}
