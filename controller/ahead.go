package controller

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/parcel"
)

// ahead is what was built of a first parcel while the controller before went on. The second parcel says what has changed since: of that,
// nothing is used. Its methods may be called on nil.
type ahead struct {
	places   places
	uplinks  map[string]*uplink      // by tag
	was      map[string]packedUplink // what they were built from, likewise
	vms      map[string]packedVM     // and their VMs, by tag
	programs map[linkOn]*bpf.Program // where nothing else was built
}

// linkOn is a program's link, 0 where it is not attached, and its interface.
type linkOn struct {
	ifindex int
	link    uint32
}

func (s *packedDevice) linkOn() linkOn { return linkOn{s.Index, s.Program.LinkID} }

// places are what of a parcel concerns the controller as a whole, and stays the same unless somebody changes it.
type places struct {
	control          packedListener
	metrics, scrapes string
	flows, pins      string
	process          int
	store            string
}

func (s *packed) places() places {
	return places{s.Control, s.Metrics, s.Scrapes, s.Flows, s.Pins, s.Process, s.Store}
}

// fixed is an uplink without its VMs and what changes while frames move.
func (s packedUplink) fixed() packedUplink {
	s.Program.Outcomes, s.Generations, s.Changes, s.Warnings, s.VMs = nil, nil, nil, nil, nil
	queues := make([]packedQueue, len(s.Queues))
	for i, q := range s.Queues {
		q.Counted = api.Queue{}
		queues[i] = q
	}
	s.Queues = queues
	s.Host = s.Host.fixed()
	s.Devices = slices.Clone(s.Devices)
	for i := range s.Devices {
		s.Devices[i].Program.Outcomes = nil
	}
	return s
}

// fits tells whether a VM is still the one that was built from was, its kind's part left out.
func (s *packedVM) fits(was *packedVM) bool {
	return s.Tag == was.Tag && s.Index == was.Index && s.Generation == was.Generation && (s.User == nil) == (was.User == nil) &&
		(s.Tap == nil) == (was.Tap == nil) && reflect.DeepEqual(s.VM, was.VM)
}

// rehearse builds what a first parcel describes. An uplink that cannot be built is an error, as it would be in the end. A VM is built in the
// end then, when all about it is known.
func (c *Controller) rehearse(p *parcel.Parcel, s *packed) error {
	c.ahead = &ahead{uplinks: map[string]*uplink{}, was: map[string]packedUplink{}, vms: map[string]packedVM{}, programs: map[linkOn]*bpf.Program{}}
	if s.Lock == "" || s.Pins != "" && !bpf.SameFlows(filepath.Join(c.opt.BPFFS, flowsPinName), c.rows) {
		// An older version's, which says no more, or whose flow maps would have to be replaced for all else.
		for i := range s.Uplinks {
			if s.Uplinks[i].Foreign != nil {
				continue
			}
			one := &s.Uplinks[i].devices()[0] // those of a bond's other members are loaded beside it
			prog, err := adoptProgram(p, one, nil, s.Uplinks[i].Rings.Frames > 0)
			if err != nil {
				return fmt.Errorf("interface %s: %w", s.Uplinks[i].Iface, err)
			}
			c.ahead.programs[one.linkOn()] = prog
		}
		return nil
	}
	if err := c.takePlaces(p, s); err != nil {
		return err
	}
	c.ahead.places = s.places()
	for i := range s.Uplinks {
		one := &s.Uplinks[i]
		u, err := c.buildUplink(p, one)
		if err != nil {
			return fmt.Errorf("interface %s: %w", one.Iface, err)
		}
		c.ahead.uplinks[one.Tag], c.ahead.was[one.Tag] = u, one.fixed()
		for n := range one.VMs {
			vm := &one.VMs[n]
			if one.Foreign == nil && !c.flows.Has(vm.VM.Name) { // the controller before has them in a map of another size
				continue
			}
			if _, err := c.buildVM(p, u, vm); err == nil {
				c.ahead.vms[vm.Tag] = *vm
				continue
			} else if a := u.vms[vm.VM.Name]; a != nil && a.tag == vm.Tag {
				u.log.Debug("VM not built ahead", "vm", vm.VM.Name, "err", err)
				_ = c.dropBuilt(a)
			}
		}
	}
	return nil
}

// keepFitting gives up what is not any more what the second parcel says.
func (r *ahead) keepFitting(c *Controller, s *packed) {
	if r == nil {
		return
	}
	now := map[string]*packedUplink{}
	vms := map[string]*packedVM{}
	for i := range s.Uplinks {
		now[s.Uplinks[i].Tag] = &s.Uplinks[i]
		for n := range s.Uplinks[i].VMs {
			vms[s.Uplinks[i].VMs[n].Tag] = &s.Uplinks[i].VMs[n]
		}
	}
	for tag, u := range r.uplinks {
		if is := now[tag]; is == nil || !reflect.DeepEqual(is.fixed(), r.was[tag]) {
			c.note(c.abandon(u))
			delete(r.uplinks, tag)
			continue
		}
		for _, a := range u.vms {
			was := r.vms[a.tag]
			if is := vms[a.tag]; is == nil || !is.fits(&was) || !a.kind.fits(is) {
				c.note(c.dropBuilt(a))
			}
		}
	}
}

// takeUplink gives an uplink away, nil when there is none.
func (r *ahead) takeUplink(s *packedUplink) (u *uplink) {
	if r != nil {
		u = r.uplinks[s.Tag]
		delete(r.uplinks, s.Tag)
	}
	return u
}

// takeProgram gives the program for a device's link away, nil when there is none.
func (r *ahead) takeProgram(s *packedDevice) (p *bpf.Program) {
	if r != nil {
		p = r.programs[s.linkOn()]
		delete(r.programs, s.linkOn())
	}
	return p
}

// placesFit tells whether the places that were taken ahead are still those of a parcel.
func (r *ahead) placesFit(s *packed) bool { return r != nil && r.places == s.places() }

// takePrograms gives those away that are on their own.
func (r *ahead) takePrograms() (all map[linkOn]*bpf.Program) {
	if r != nil {
		all, r.programs = r.programs, nil
	}
	return all
}

// dropAhead lets go of what was built ahead and not used.
func (c *Controller) dropAhead() {
	if c.ahead == nil {
		return
	}
	for _, u := range c.ahead.uplinks {
		c.note(c.abandon(u))
	}
	for _, p := range c.ahead.programs {
		c.note(p.Release())
	}
	c.ahead = nil
}

// note logs what went wrong with something that is not used any more.
func (c *Controller) note(err error) {
	if err != nil {
		c.log.Warn("hand over: what was given up", "err", err)
	}
}
