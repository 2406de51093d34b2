package bpf

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// HostParts are what a HostProgram lives in, so that another process can go on with it: programs and their links by the programs' names, no links
// by clsact, and maps by theirs.
type HostParts struct {
	Programs map[string]int
	Links    map[string]int
	Maps     map[string]int
	Object   string            // tells versions of the programs apart
	IDs      map[string]uint32 // the kernel's numbers: of maps by their names, of links by "link." and the program's, of programs by the program's
}

// Close closes parts that nobody adopts.
func (p *HostParts) Close() {
	for _, all := range []map[string]int{p.Programs, p.Links, p.Maps} {
		for name, fd := range all {
			delete(all, name)
			_ = unix.Close(fd)
		}
	}
}

// Parts returns the parts of the programs. The descriptors are borrowed, valid until Detach and Close.
func (p *HostProgram) Parts() (HostParts, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told.ids == nil { // asked each second, and never different
		p.told = told{object: objectOf(_RscHostBytes), ids: map[string]uint32{RscHostMapNeighbours: mapID(p.neighbours), RscHostMapOutcomes: mapID(p.outcomes)}}
		for i, at := range hostPlaces {
			p.told.ids[at.hook.name] = progID(p.progs[i])
		}
	}
	out := HostParts{
		Programs: map[string]int{}, Links: map[string]int{}, Maps: map[string]int{RscHostMapNeighbours: p.neighbours.FD(), RscHostMapOutcomes: p.outcomes.FD()},
		Object: p.told.object, IDs: maps.Clone(p.told.ids),
	}
	for i, at := range hostPlaces {
		out.Programs[at.hook.name] = p.progs[i].FD()
		if p.on[i] == nil || p.on[i].link == nil {
			continue
		}
		fd, id, err := linkFD(p.on[i].link)
		if err != nil {
			return HostParts{}, fmt.Errorf("tc: link: %w", err)
		}
		out.Links[at.hook.name], out.IDs["link."+at.hook.name] = fd, id
	}
	return out, nil
}

// AdoptHost goes on with another process's programs: this version's stand by, where they differ, and TakePlace puts them in their places.
// Neighbours and counts go on. The descriptors are taken over, also with an error. Errors: those of LoadHost, and ErrParts.
func AdoptHost(o HostOptions, parts HostParts) (_ *HostProgram, err error) {
	defer parts.Close()
	all := Parts{Maps: parts.Maps}
	from, err := openMaps(&all)
	defer func() {
		for _, m := range from {
			_ = m.Close() // the program has its own reference
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("tc: %w", err)
	}
	p, err := adoptHostSame(o, &parts, from)
	if p == nil && err == nil {
		p, err = loadHost(o, from)
	}
	if err != nil {
		return nil, err
	}
	for i, at := range hostPlaces {
		fd, ok := parts.Links[at.hook.name]
		if !ok {
			continue
		}
		delete(parts.Links, at.hook.name)
		if p.place[i], err = openLink(fd, link.TCXType); err != nil {
			return nil, errors.Join(fmt.Errorf("tc: %w", err), p.free())
		}
	}
	return p, nil
}

// adoptHostSame goes on with programs of this very version, as they are; nil when they are of another, or not all there.
func adoptHostSame(o HostOptions, parts *HostParts, from map[string]*ebpf.Map) (_ *HostProgram, err error) {
	if parts.Object != objectOf(_RscHostBytes) || len(parts.Programs) != len(hostPlaces) || from[RscHostMapNeighbours] == nil || from[RscHostMapOutcomes] == nil {
		return nil, nil
	}
	p := &HostProgram{o: o, rows: map[PortKey]bool{}}
	for i, at := range hostPlaces {
		fd, ok := parts.Programs[at.hook.name]
		if ok {
			delete(parts.Programs, at.hook.name)
			p.progs[i], err = ebpf.NewProgramFromFD(fd)
		}
		if !ok || err != nil {
			for _, prog := range p.progs[:i] {
				_ = prog.Close()
			}
			return nil, fmt.Errorf("tc: program %s: %w", at.hook.name, errors.Join(ErrParts, err))
		}
	}
	p.neighbours, p.outcomes = from[RscHostMapNeighbours], from[RscHostMapOutcomes]
	clear(from)
	return p, nil
}

// TakePlace puts adopted programs in place of the other process's, each between two frames; one that hung nowhere, or by clsact, is
// attached anew. Errors: those of Attach.
func (p *HostProgram) TakePlace() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.readRows(); err != nil {
		return err
	}
	for i, at := range hostPlaces {
		if l := p.place[i]; l != nil && (isOn(l, p.progs[i]) || l.Update(p.progs[i]) == nil) {
			p.on[i], p.place[i] = &tcAttachment{link: l}, nil
			continue
		}
		var err error // its link was detached, with its device or by somebody
		if p.on[i], err = at.hook.attachAlone(at.ifindex(p.o), p.progs[i]); err != nil {
			return err
		}
	}
	return nil
}

// isOn reports whether a link has that very program on its interface: to put it there once more would wait for all processors.
func isOn(l link.Link, prog *ebpf.Program) bool {
	id, on := tcxProgram(l)
	return on && id == progID(prog)
}

// readRows learns who the neighbours of the process before are. The caller holds mu.
func (p *HostProgram) readRows() error {
	var key PortKey
	var value uint32
	it := p.neighbours.Iterate()
	for it.Next(&key, &value) {
		p.rows[key] = true
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("tc: neighbours: %w", err)
	}
	return nil
}

// Release closes what this process has of the programs and leaves them in their places, for the process that has their Parts. nil is no error.
func (p *HostProgram) Release() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	var errs []error
	for i, on := range p.on {
		p.on[i] = nil
		errs = append(errs, on.leave())
	}
	p.mu.Unlock()
	return errors.Join(append(errs, p.free())...)
}
