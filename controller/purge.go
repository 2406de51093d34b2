package controller

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/state"
)

// Purge takes off the host all that a controller with these places left there: what is still to be undone, TC filters on taps, the pinned
// flow maps, a stale control socket, the state with its VMs. done says what, in words. It is for a controller that does not run: ErrHeld
// when one does. What cannot be undone stays, and the state with it. With dry nothing is changed, and done says what would be.
func Purge(opt Options, dry bool) (done []string, err error) {
	if _, err := os.Stat(opt.State); errors.Is(err, fs.ErrNotExist) {
		pins, err := purgePins(opt.BPFFS, dry)
		return append(done, pins...), err
	}
	d, err := openState(opt.State)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if _, err := os.Stat(opt.BPFFS); err == nil {
		lock, err := lockPins(opt.BPFFS)
		if err != nil {
			return nil, err
		}
		defer unlockPins(lock)
	}
	if undone, err := undoAll(d, dry); err != nil {
		return undone, fmt.Errorf("purge: not put back, so the state is kept: %w", err)
	} else {
		done = append(done, undone...)
	}
	saved, _ := d.Load() // what cannot be read goes all the same
	vms, err := purgeVMs(saved, dry)
	pins, perr := purgePins(opt.BPFFS, dry)
	socket, serr := purgeSocket(opt.Socket, dry)
	done, err = append(append(append(done, vms...), pins...), socket...), errors.Join(err, perr, serr)
	if dry {
		return append(done, "state "+opt.State+" removed"), err
	}
	left, perr := d.Purge()
	for _, name := range left {
		done = append(done, "left, because it is not rscctl's: "+name)
	}
	if len(left) == 0 {
		done = append(done, "state "+opt.State+" removed")
	}
	return done, errors.Join(err, perr)
}

// undoAll undoes what is on the undo list, the newest first.
func undoAll(d *state.Dir, dry bool) (done []string, err error) {
	if problems := d.Problems(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	list := d.Changes()
	for i := len(list) - 1; i >= 0; i-- {
		undone := true
		if !dry {
			if undone, err = hostchange.Undo(list[i]); err != nil {
				return done, err
			}
			if err := d.Forget(list[i].ID); err != nil {
				return done, err
			}
		}
		if undone {
			done = append(done, hostchange.UndoneText(list[i]))
		}
	}
	return done, nil
}

// purgePins removes the pinned flow maps, and their folder when nothing else is in it.
func purgePins(dir string, dry bool) (done []string, err error) {
	pin := filepath.Join(dir, flowsPinName)
	if _, err := os.Lstat(pin); err == nil {
		if !dry {
			if err := os.Remove(pin); err != nil {
				return nil, fmt.Errorf("purge: flow maps: %w", err)
			}
		}
		done = append(done, "flow maps "+pin+" removed")
	}
	if !dry {
		_ = os.Remove(dir) // ours when empty; an operator's other pins stay
	}
	return done, nil
}

// purgeVMs takes off the host what is left of VMs: TC filters on their taps and on the interfaces, sockets that nobody listens on.
func purgeVMs(saved state.State, dry bool) (done []string, err error) {
	for _, i := range saved.Interfaces {
		if link, bad := net.InterfaceByName(i.Name); bad == nil && !dry {
			err = errors.Join(err, bpf.RemoveStaleHost(link.Index))
		}
		for _, vm := range i.VMs {
			if s := vm.VhostUser; s != nil && !s.Connect {
				gone, serr := purgeSocket(s.Socket, dry)
				done, err = append(done, gone...), errors.Join(err, serr)
			}
			for _, k := range builtinKinds() {
				if k.sweep != nil && !dry {
					err = errors.Join(err, k.sweep(&vm))
				}
			}
			done = append(done, fmt.Sprintf("VM %s of %s forgotten", vm.Name, i.Name))
		}
	}
	return done, err
}

// purgeSocket removes a socket that nobody listens on.
func purgeSocket(path string, dry bool) (done []string, err error) {
	if !stale(path) {
		return nil, nil
	}
	if !dry {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("purge: %w", err)
		}
	}
	return []string{"socket " + path + " removed"}, nil
}

// stale tells a socket that nobody listens on.
func stale(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}
