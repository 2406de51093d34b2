package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Kind says what a change of the host is, and so how it is undone.
type Kind string

// Offload is an offload of a network device that was switched. Undone by asking for each bit of Was again.
const Offload Kind = "offload"

// Device tells an interface from all others: names move from one to another, and a reboot gives out the indexes anew.
type Device struct {
	Index int    `json:"ifindex"`
	Addr  string `json:"perm_addr,omitempty"` // the permanent address, "": it has none, as a veth
	Boot  string `json:"boot_id,omitempty"`   // the boot that Index is of
}

// Change is one change of the host with all that undoing it needs.
type Change struct {
	ID      uint64          `json:"id"` // given by Record
	Kind    Kind            `json:"kind"`
	Iface   string          `json:"iface"`           // the uplink that was attached
	Link    string          `json:"link"`            // the changed device, by the name that it had
	Via     string          `json:"via,omitempty"`   // Link is the other end of the veth of this name, perhaps in another namespace
	Device  Device          `json:"device,omitzero"` // of Via where that is given, otherwise of Link; zero in a list of schema 1
	Feature string          `json:"feature"`         // the offload, as ethtool -K names it
	Was     map[string]bool `json:"was"`             // the kernel's feature bits that are to be asked for again
	Why     string          `json:"why"`
}

// check finds a record that cannot be acted on.
func (c Change) check() error {
	switch {
	case c.Kind != Offload:
		return fmt.Errorf("kind %q is unknown to this version", c.Kind)
	case c.Link == "" || c.Feature == "":
		return errors.New("names no device or no offload")
	}
	return nil
}

// entry is a line of the undo list: raw is what is written again, so that a newer version finds what it wrote there.
type entry struct {
	Change
	raw   []byte
	known bool // false: of a kind that only a newer version can undo
}

func newEntry(c Change) (entry, error) {
	if err := c.check(); err != nil {
		return entry{}, fmt.Errorf("undo list: %w", err)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return entry{}, fmt.Errorf("undo list: %w", err)
	}
	return entry{Change: c, raw: raw, known: true}, nil
}

// parseUndo reads the list line by line. What cannot be read is told by problems; lines of an unknown kind stay in the list.
func parseUndo(b []byte) (list []entry, problems []error) {
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		e := entry{raw: bytes.Clone(line)}
		if err := json.Unmarshal(line, &e.Change); err != nil || e.Kind == "" {
			problems = append(problems, fmt.Errorf("line %d: %w: look by hand what it was, it cannot be undone", n, ErrDamaged))
			continue
		}
		if err := e.check(); err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w: it stays in the list, undo it with the version that made it", n, err))
		} else {
			e.known = true
		}
		list = append(list, e)
	}
	return list, problems
}

// Changes lists what is to be undone, the oldest first: undo it from the end.
func (d *Dir) Changes() (out []Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.undo {
		if e.known {
			out = append(out, e.Change)
		}
	}
	return out
}

// Problems tells what of the undo list could not be read, a line of text each.
func (d *Dir) Problems() []error { return slices.Clone(d.problems) }

// Record puts changes on the undo list and gives them their IDs. Call it before they are made: when it returns nil they will be
// undone whatever happens. ErrNotSaved means that nothing was recorded, so nothing may be changed.
func (d *Dir) Record(changes []Change) error {
	if len(changes) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.Clone(d.undo)
	next := uint64(1)
	for _, e := range list {
		next = max(next, e.ID+1)
	}
	for i := range changes {
		c := changes[i]
		c.ID = next + uint64(i)
		e, err := newEntry(c)
		if err != nil {
			return err
		}
		list = append(list, e)
	}
	if err := d.writeUndo(list); err != nil {
		return err
	}
	d.undo, d.undoDirty = list, false
	for i := range changes {
		changes[i].ID = next + uint64(i)
	}
	return nil
}

// Forget takes changes that have been undone off the list. With ErrNotSaved the file still has them: they are off the list of
// this process, and Flush writes it later; after a crash before that they are undone once more, which does no harm.
func (d *Dir) Forget(ids ...uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(d.undo), func(e entry) bool { return e.known && slices.Contains(ids, e.ID) })
	if len(list) == len(d.undo) && !d.undoDirty {
		return nil
	}
	d.undo, d.undoDirty = list, true
	return d.flush()
}

// Flush writes the undo list again if the file is behind.
func (d *Dir) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flush()
}

func (d *Dir) flush() error {
	if !d.undoDirty {
		return nil
	}
	if err := d.writeUndo(d.undo); err != nil {
		return err
	}
	d.undoDirty = false
	return nil
}

func (d *Dir) writeUndo(list []entry) error {
	var b bytes.Buffer
	for _, e := range list {
		b.Write(e.raw)
		b.WriteByte('\n')
	}
	if d.undoDamaged { // what could not be read is kept for the operator: a second name needs no room on the disk
		d.keepAside(undoFile)
		d.undoDamaged = false
	}
	return d.replace(undoFile, b.Bytes())
}
