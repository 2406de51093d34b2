package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
)

const stateFile = "state.json"

// savedState is what survives a controller: who is attached with which policy, and what of the host was changed and
// must be put back (by detach, by a clean stop, or by the next run after a crash).
type savedState struct {
	Schema     int              `json:"schema"`
	Interfaces []savedInterface `json:"interfaces"`
}

type savedInterface struct {
	Name    string      `json:"name"`
	Ports   []savedPort `json:"ports"`
	Changes []change    `json:"changes"`
}

type savedPort struct {
	Attach api.AttachRequest `json:"attach"`
	Policy api.Policy        `json:"policy"`
}

// stateDir is the locked state directory. The lock lives as long as the process: a crash frees it.
type stateDir struct {
	path string
	lock *os.File
}

// openState makes the directory if need be and takes its lock. ErrHeld when another controller has it.
func openState(path string) (*stateDir, error) {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fmt.Errorf("state: %w: choose another directory with --state", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state: %w: choose another directory with --state", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state: %s: %w: stop it, or use another --state", path, ErrHeld)
		}
		return nil, fmt.Errorf("state: lock %s: %w", path, err)
	}
	return &stateDir{path: path, lock: lock}, nil
}

func (s *stateDir) close() { s.lock.Close() }

// load returns the saved state; an absent file is an empty one. A damaged file is an error that names it: guessing
// would forget which offloads were changed.
func (s *stateDir) load() (savedState, error) {
	st := savedState{Schema: api.Schema}
	name := filepath.Join(s.path, stateFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, fmt.Errorf("state: %w", err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("state: %s: %w: mend or remove the file", name, err)
	}
	if st.Schema != api.Schema {
		return st, fmt.Errorf("state: %s: schema %d, want %d: it was written by another version; remove the file", name, st.Schema, api.Schema)
	}
	return st, nil
}

// save replaces the file as a whole: written beside it, flushed, renamed, so that a crash leaves the old or the new one.
func (s *stateDir) save(st savedState) error {
	st.Schema = api.Schema
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	tmp, err := os.CreateTemp(s.path, stateFile+".new-*")
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer os.Remove(tmp.Name()) // nothing left to remove once renamed
	_, err = tmp.Write(append(b, '\n'))
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(s.path, stateFile))
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}
