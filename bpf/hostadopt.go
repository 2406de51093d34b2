package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// HostParts are what a HostProgram lives in, so that another process can go on with it: links by the names of their programs, none by
// clsact, and maps by theirs.
type HostParts struct {
	Links map[string]int
	IDs   map[string]uint32 // the kernel's numbers of all of them
	Maps  map[string]int
}

// Close closes parts that nobody adopts.
func (p *HostParts) Close() {
	for _, all := range []map[string]int{p.Links, p.Maps} {
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
	out := HostParts{
		Links: map[string]int{}, Maps: map[string]int{RscHostMapNeighbours: p.neighbours.FD(), RscHostMapOutcomes: p.outcomes.FD()},
		IDs: map[string]uint32{RscHostMapNeighbours: mapID(p.neighbours), RscHostMapOutcomes: mapID(p.outcomes)},
	}
	for i, at := range hostPlaces {
		if p.on[i] == nil || p.on[i].link == nil {
			continue
		}
		fd, id, err := linkFD(p.on[i].link)
		if err != nil {
			return HostParts{}, fmt.Errorf("tc: link: %w", err)
		}
		out.Links[at.hook.name], out.IDs[at.hook.name] = fd, id
	}
	return out, nil
}

// AdoptHost goes on with another process's programs: this version's stand by, and TakePlace puts them in their places. Neighbours and
// counts go on. The descriptors are taken over, also with an error. Errors: those of LoadHost, and ErrParts.
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
	p, err := loadHost(o, from)
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

// TakePlace puts adopted programs in place of the other process's, each between two frames; one that hung nowhere, or by clsact, is
// attached anew. Errors: those of Attach.
func (p *HostProgram) TakePlace() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.readRows(); err != nil {
		return err
	}
	for i, at := range hostPlaces {
		if l := p.place[i]; l != nil && l.Update(p.progs[i]) == nil {
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
		switch {
		case on == nil:
		case on.link != nil:
			errs = append(errs, closeLink(on.link))
		default:
			on.filter.h.Close()
		}
	}
	p.mu.Unlock()
	return errors.Join(append(errs, p.free())...)
}
