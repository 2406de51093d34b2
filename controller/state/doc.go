// Package state keeps what must outlive a controller, in one locked directory:
//
//	lock         held by flock(2) as long as the process lives; a crash frees it
//	state.json   which VM is attached where, with which policy
//	undo.jsonl   what of the host was changed and must be put back, one record a line, the oldest first
//
// The two files are apart because they fail apart. What a controller changed on somebody's host must be put back even when the
// list of VMs is damaged or was written by a newer version, and a mistake in the list of VMs must not be able to take the undo
// list with it. So the undo list has no version of its own: each line stands alone, a line that cannot be read costs itself
// only, and a kind of change never alters its meaning (a new meaning gets a new kind). It is written before the change that it
// undoes (Record) and shortened after that change was undone (Forget): a crash in between undoes something twice, which does
// no harm, and never forgets it.
//
// Both files are replaced as a whole: written beside the old one, flushed, renamed, and the folder flushed. A crash leaves the
// old file or the new one.
//
// The types are the file's own. They change only together with Schema and a step that reads the form before.
package state

import "errors"

var (
	// ErrLocked: another process holds the directory.
	ErrLocked = errors.New("held by another controller")
	// ErrNewer: state.json was written by a newer version. It is left as it is.
	ErrNewer = errors.New("written by a newer version")
	// ErrDamaged: state.json, or a line of the undo list, cannot be read. It is left as it is.
	ErrDamaged = errors.New("damaged")
	// ErrNotSaved: a file could not be written (a full disk, a read-only filesystem). What is on the disk is what was there before.
	ErrNotSaved = errors.New("not saved")
)
