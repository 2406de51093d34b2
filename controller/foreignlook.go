package controller

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
)

// followForeign looks whether the sockets are still where somebody else's program looks for them, and puts them into another map that is
// pinned there by now. The caller holds mu.
func (c *Controller) followForeign(u *uplink) {
	f := u.foreign
	if f == nil {
		return
	}
	moved, trouble := f.look()
	if !slices.Equal(trouble, f.trouble) {
		for _, t := range trouble {
			u.log.Warn(t)
		}
		if f.trouble = trouble; len(trouble) == 0 {
			u.log.Info("xsk-map: all is as it was again")
		}
	}
	if moved { // who comes after a crash is to go on with this map
		u.log.Info("xsk-map: another map is pinned there, which has the sockets now", "xsk-map", f.path)
		c.remember()
	}
}

// look says what is wrong, and whether the sockets are in another map than before.
func (f *foreign) look() (moved bool, trouble []string) {
	moved, err := f.follow()
	if err != nil {
		trouble = append(trouble, fmt.Sprintf("xsk-map %s: %v: its program's owner may look for sockets elsewhere now: have the map pinned there again, or 'rscctl detach %s'", f.path, err, f.dev.facts.Name))
	}
	for _, queue := range slices.Sorted(maps.Keys(f.placed)) { // puts one back that was taken out
		if err := f.sockets.Take(queue, f.placed[queue]); err != nil {
			trouble = append(trouble, fmt.Sprintf("xsk-map %s: queue %d: %v, so no frame of that queue comes to the VMs: end who put it there, and it is put back", f.path, queue, err))
		}
	}
	if now := f.dev.facts; !now.XDP.Attached {
		trouble = append(trouble, fmt.Sprintf("no XDP program is on %s, so no frame comes by %s: start its owner", now.Name, f.path))
	}
	return moved, trouble
}

// follow puts the sockets into the map that is pinned now, if that is another one.
func (f *foreign) follow() (moved bool, err error) {
	now, err := bpf.OpenSocketMap(f.path)
	if err != nil {
		return false, err
	}
	if now.ID() == f.sockets.ID() {
		return false, now.Close()
	}
	for queue, fd := range f.placed {
		if err = now.Take(queue, fd); err != nil {
			for q, fd := range f.placed {
				err = errors.Join(err, now.Leave(q, fd))
			}
			return false, fmt.Errorf("another map is pinned there: %w", errors.Join(err, now.Close()))
		}
	}
	for queue, fd := range f.placed {
		err = errors.Join(err, f.sockets.Leave(queue, fd))
	}
	err = errors.Join(err, f.sockets.Close())
	f.sockets = now
	return true, err
}

// describeForeign is somebody else's program as status shows it, nil where it is ours.
func (u *uplink) describeForeign() *api.ForeignProgram {
	if u.foreign == nil {
		return nil
	}
	out := &api.ForeignProgram{XSKMap: u.foreign.path, Queues: u.foreign.queues, NotOffered: notOffered}
	if x := u.facts.XDP; x.Attached {
		out.ID, out.Name = x.ProgID, bpf.NameOf(ebpf.ProgramID(x.ProgID))
	}
	return out
}
