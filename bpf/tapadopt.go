package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Parts returns the parts of a tap's program: the link is that of TCX; under clsact there is none, as a filter is not a process's. The
// descriptors are borrowed, valid until Detach and Close.
func (p *TapProgram) Parts() (Parts, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := Parts{Program: p.prog.FD(), Link: -1, Mode: p.on.mode(), Maps: map[string]int{RscTapMapOutcomes: p.outcomes.FD()}}
	out.Object, out.IDs = p.told.of(_RscTapBytes, p.prog, map[string]*ebpf.Map{RscTapMapOutcomes: p.outcomes})
	if p.on != nil {
		var err error
		if out.Link, out.LinkID, err = linkFD(p.on.link); err != nil {
			return Parts{}, fmt.Errorf("tc: link: %w", err)
		}
	}
	return out, nil
}

// AdoptTap goes on with a tap's program of another process: this version's stands by, and TakePlace puts it in its place. o.Flows must be
// the VM's map. It counts on. The descriptors are taken over, also with an error. Errors: those of LoadTap, and ErrParts.
func AdoptTap(o TapOptions, parts Parts, outcomes map[string]uint64) (_ *TapProgram, err error) {
	defer parts.Close()
	maps, err := openMaps(&parts)
	defer func() {
		for _, m := range maps {
			_ = m.Close() // the program has its own reference
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("tc: %w", err)
	}
	p, err := adoptTapSame(o, &parts, maps)
	if p == nil && err == nil {
		if p, err = loadTap(o, maps[RscTapMapOutcomes]); err == nil && !p.kept {
			err = setByName(p.outcomes, tapOutcomeNames[:], outcomes)
		}
	}
	if err == nil && parts.Link >= 0 {
		p.place, err = openLink(parts.Link, link.TCXType)
		parts.Link = -1
	}
	if err != nil {
		if p != nil {
			_ = p.Release()
		}
		return nil, fmt.Errorf("tc: %w", err)
	}
	return p, nil
}

// adoptTapSame goes on with a program of this very version, as it is; nil when it is of another, or must be put in place.
func adoptTapSame(o TapOptions, parts *Parts, maps map[string]*ebpf.Map) (*TapProgram, error) {
	if parts.Object != objectOf(_RscTapBytes) || maps[RscTapMapOutcomes] == nil || parts.Link < 0 || o.Flows == nil {
		return nil, nil
	}
	prog, err := ebpf.NewProgramFromFD(parts.Program)
	if err != nil {
		return nil, fmt.Errorf("program: %w: %w", ErrParts, err)
	}
	parts.Program = -1
	p := &TapProgram{ifindex: o.Ifindex, kept: true, prog: prog, outcomes: maps[RscTapMapOutcomes]}
	clear(maps)
	return p, nil
}

// TakePlace puts an adopted program on its tap in place of the other process's, in the network namespace of the calling thread. Errors:
// those of Attach.
func (p *TapProgram) TakePlace() error {
	p.mu.Lock()
	l := p.place
	p.mu.Unlock()
	if l == nil {
		return p.Attach()
	}
	if err := l.Update(p.prog); err != nil { // also with the same one
		return fmt.Errorf("tc: replace the program: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on, p.place = &tcAttachment{link: l}, nil
	return nil
}

// Release closes what this process has of the program and leaves it on its tap, as Program.Release does.
func (p *TapProgram) Release() error {
	p.mu.Lock()
	on := p.on
	p.on = nil
	p.mu.Unlock()
	return errors.Join(on.leave(), p.Close()) // what has not taken its place is Close's
}
