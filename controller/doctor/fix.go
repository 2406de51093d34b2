package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
)

// ownFolder is where in the state directory the undo list of Fix lies, under a lock of its own.
const ownFolder = "doctor"

// Fix does what findings say can be done, in the network namespace of the calling thread. Offloads are recorded below the state
// directory before they are switched; what a dead controller left is removed for good. done says in words what was done; what
// failed does not stop the rest, and is not left half done.
func Fix(stateDir string, findings []Finding) (done []string, err error) {
	var changes []state.Change
	var errs []error
	for _, f := range findings {
		switch {
		case f.change != nil:
			c := *f.change
			c.Iface = f.Subject
			if err := hostchange.Plan(&c); err != nil {
				errs = append(errs, err)
			} else {
				changes = append(changes, c)
			}
		case f.tap != 0:
			if err := errors.Join(bpf.RemoveStaleTap(f.tap), bpf.RemoveStaleHost(f.tap)); err != nil { // whichever it was
				errs = append(errs, fmt.Errorf("interface %s: %w", f.Subject, err))
			} else {
				done = append(done, "TC filter of a dead controller removed from "+f.Subject)
			}
		}
	}
	if len(changes) > 0 {
		switched, err := switchOff(stateDir, changes)
		done, errs = append(done, switched...), append(errs, err)
	}
	return done, errors.Join(errs...)
}

// switchOff records changes and makes them.
func switchOff(stateDir string, changes []state.Change) (done []string, err error) {
	d, err := open(stateDir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Record(changes); err != nil {
		return nil, err
	}
	var errs []error
	for _, c := range changes {
		err := hostchange.Apply(c)
		if err == nil {
			done = append(done, fmt.Sprintf("%s switched off on %s", c.Feature, c.Link))
			continue
		}
		errs = append(errs, err)
		if _, err := hostchange.Undo(c); err != nil {
			errs = append(errs, err) // it stays on the list
		} else {
			errs = append(errs, d.Forget(c.ID))
		}
	}
	return done, errors.Join(errs...)
}

// Undo takes back what Fix switched, the newest first: of one interface, or with iface "" all of it. What could not be undone stays on
// the list.
func Undo(stateDir, iface string) (done []string, err error) {
	if _, err := os.Stat(filepath.Join(stateDir, ownFolder)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	d, err := open(stateDir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	errs := d.Problems()
	list := d.Changes()
	for k := len(list) - 1; k >= 0; k-- {
		c := list[k]
		if iface != "" && !concerns(c, iface) {
			continue
		}
		undone, err := hostchange.Undo(c)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if undone {
			done = append(done, hostchange.UndoneText(c))
		}
		errs = append(errs, d.Forget(c.ID))
	}
	return done, errors.Join(errs...)
}

// Purge takes back all that Fix switched, and then the list itself, if there is one. What cannot be taken back stays on it.
func Purge(stateDir string) (done []string, err error) {
	if done, err = Undo(stateDir, ""); err != nil {
		return done, err
	}
	if _, err := os.Stat(filepath.Join(stateDir, ownFolder)); errors.Is(err, fs.ErrNotExist) {
		return done, nil
	}
	d, err := open(stateDir)
	if err != nil {
		return done, err
	}
	_, err = d.Purge()
	return done, err
}

// concerns tells whether a change was made for an interface, by the name that it had or has.
func concerns(c state.Change, iface string) bool {
	if c.Iface == iface {
		return true
	}
	var now string
	err := netdev.With(func(h *netdev.Handle) (err error) {
		now, err = hostchange.NameNow(h, c)
		return err
	})
	return err == nil && now == iface
}

func open(stateDir string) (*state.Dir, error) {
	path := filepath.Join(stateDir, ownFolder)
	d, err := state.Open(path)
	if errors.Is(err, state.ErrLocked) {
		return nil, fmt.Errorf("%s: another 'rscctl doctor' is at work: try again when it is done", path)
	}
	return d, err
}
