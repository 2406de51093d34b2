package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Parts are what an attached program lives in, so that another process can go on with it: the program, the link, which keeps it on
// its interface, and the maps by their names in the object.
type Parts struct {
	Program  int               // descriptors
	Link     int               // -1: not attached, or by a filter
	LinkID   uint32            // the kernel's number of the link
	Maps     map[string]int    //
	Mode     string            // as Program.Mode says
	IDs      map[string]uint32 // the kernel's numbers of the maps and, under "", of the program
	Object   string            // tells versions of the program apart
	ReadsTag bool              // see Program.ReadsVLANTag
}

// Close closes parts that nobody adopts.
func (p *Parts) Close() {
	for _, fd := range []int{p.Program, p.Link} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	for _, fd := range p.Maps {
		_ = unix.Close(fd)
	}
	p.Program, p.Link, p.Maps = -1, -1, nil
}

// objectOf tells the program of an object from that of another version.
func objectOf(object []byte) string {
	sum := sha256.Sum256(object)
	return hex.EncodeToString(sum[:8])
}

// Parts returns the program's parts. The descriptors are borrowed, valid until Detach and Close.
func (p *Program) Parts() (Parts, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps := p.maps()
	out := Parts{Program: p.prog.FD(), Mode: p.mode, ReadsTag: p.readsTag, Maps: map[string]int{}}
	for name, m := range maps {
		out.Maps[name] = m.FD()
	}
	out.Object, out.IDs = p.told.of(_RscBytes, p.prog, maps)
	var err error
	if out.Link, out.LinkID, err = linkFD(p.link); err != nil {
		return Parts{}, fmt.Errorf("xdp: link: %w", err)
	}
	return out, nil
}

// told is what never changes of a program that is loaded. To tell it takes some ten system calls, and Parts is asked each second.
type told struct {
	object string
	ids    map[string]uint32 // nil: not asked yet
}

func (t *told) of(object []byte, prog *ebpf.Program, maps map[string]*ebpf.Map) (string, map[string]uint32) {
	if t.ids == nil {
		t.object, t.ids = objectOf(object), idsOf(prog, maps)
	}
	ids := t.ids
	for _, id := range ids {
		if id == 0 { // the kernel may tell the next time
			t.ids = nil
		}
	}
	return t.object, ids
}

// idsOf are the kernel's numbers of a program and its maps, 0 where it does not tell.
func idsOf(prog *ebpf.Program, maps map[string]*ebpf.Map) map[string]uint32 {
	out := map[string]uint32{"": progID(prog)}
	for name, m := range maps {
		out[name] = mapID(m)
	}
	return out
}

func progID(prog *ebpf.Program) uint32 {
	info, err := prog.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return uint32(id)
}

func mapID(m *ebpf.Map) uint32 {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return uint32(id)
}

// Adopt goes on with a program of another process. If that one's version has another program, this version's is loaded, which takes a
// moment, and stands by: TakePlace puts it on the interface. It uses the other's maps; a map that this version has otherwise is made
// anew, and of those outcomes goes on at the counts that the caller gives. What else is in a new map is the caller's to set.
//
// Adopt takes the descriptors over, also with an error. Errors: those of Load, and ErrParts.
func Adopt(o LoadOptions, parts Parts, outcomes map[string]uint64) (_ *Program, err error) {
	defer parts.Close()
	maps, err := openMaps(&parts)
	defer func() {
		for _, m := range maps {
			_ = m.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	p, err := adoptSame(o, &parts, maps)
	if p == nil && err == nil {
		if p, err = loadOver(o, maps); err == nil && !p.kept {
			err = setByName(p.outcomes, outcomeNames[:], outcomes)
		}
	}
	if err == nil && parts.Link >= 0 {
		p.link, err = openLink(parts.Link, link.XDPType)
		parts.Link = -1
		p.mode = parts.Mode
	}
	if err != nil {
		if p != nil {
			_ = p.Release()
		}
		return nil, fmt.Errorf("xdp: %w", err)
	}
	return p, nil
}

// adoptSame goes on with a program of this very version, as it is; nil when it is of another.
func adoptSame(o LoadOptions, parts *Parts, maps map[string]*ebpf.Map) (*Program, error) {
	spec, err := LoadRsc()
	if err != nil || parts.Object != objectOf(_RscBytes) {
		return nil, err
	}
	if err := sizeMaps(spec, o); err != nil {
		return nil, err
	}
	if len(compatible(spec, maps)) != len(maps) || len(maps) != len((&Program{}).maps()) {
		return nil, nil
	}
	prog, err := ebpf.NewProgramFromFD(parts.Program)
	if err != nil {
		return nil, fmt.Errorf("program: %w: %w", ErrParts, err)
	}
	parts.Program = -1
	p := &Program{
		ifindex: o.Ifindex, readsTag: parts.ReadsTag, kept: true, prog: prog, excludes: map[uint32][]uint16{}, excluded: maps[RscMapExcluded],
		ports: maps[RscMapPorts], outcomes: maps[RscMapOutcomes], xsks: maps[RscMapXsks], flows: maps[RscMapFlows], shares: maps[RscMapShares],
		cached: maps[RscMapFlowSlots], made: maps[RscMapRowsMade], device: maps[RscMapDevice],
	}
	clear(maps)
	if p.slots, err = openSlots(p.cached); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// TakePlace puts an adopted program on its interface in place of the other process's, between two frames. A program that was not
// attached stays so.
func (p *Program) TakePlace() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != nil { // also the same program: the link may be one that was detached, or have another heir's
		if err := p.link.Update(p.prog); err != nil {
			return fmt.Errorf("xdp: replace the program: %w", err)
		}
	}
	// Not before: they may change while it is made ready.
	if err := p.readExcluded(); err != nil {
		return fmt.Errorf("xdp: %w", err)
	}
	return nil
}

// Release closes what this process has of the program and leaves it on its interface, for the process that has its Parts.
func (p *Program) Release() error {
	p.mu.Lock()
	on := p.link
	p.link, p.mode = nil, ""
	p.mu.Unlock()
	return errors.Join(closeLink(on), p.Close())
}

// closeLink closes a link without taking its program off, which happens when nobody has it any more.
func closeLink(l link.Link) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// linkFD is the descriptor of a link and the kernel's number of it, -1 for nil.
func linkFD(l link.Link) (fd int, id uint32, err error) {
	if l == nil {
		return -1, 0, nil
	}
	raw, ok := l.(interface{ FD() int })
	if !ok {
		return -1, 0, fmt.Errorf("%w: %T has no descriptor", ErrUnsupported, l)
	}
	info, err := l.Info()
	if err != nil {
		return -1, 0, err
	}
	return raw.FD(), uint32(info.ID), nil
}

// openMaps opens the maps of parts, all of which are taken over.
func openMaps(parts *Parts) (map[string]*ebpf.Map, error) {
	out := map[string]*ebpf.Map{}
	for name, fd := range parts.Maps {
		delete(parts.Maps, name)
		m, err := ebpf.NewMapFromFD(fd)
		if err != nil {
			_ = unix.Close(fd)
			return out, fmt.Errorf("map %s: %w: %w", name, ErrParts, err)
		}
		out[name] = m
	}
	return out, nil
}

// openLink opens a link of one type, which is taken over.
func openLink(fd int, want link.Type) (link.Link, error) {
	l, err := link.NewFromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("link: %w: %w", ErrParts, err)
	}
	info, err := l.Info()
	if err == nil && info.Type != want {
		err = fmt.Errorf("it is of type %v", info.Type)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("link: %w: %w", ErrParts, err)
	}
	return l, nil
}

// setByName gives a new per-CPU array the sums that its predecessor had, where this version knows the name.
func setByName(m *ebpf.Map, names []string, sums map[string]uint64) error {
	for i, name := range names {
		perCPU := make([]uint64, ebpf.MustPossibleCPU())
		perCPU[0] = sums[name]
		if err := m.Put(uint32(i), perCPU); err != nil {
			return fmt.Errorf("counters: %w", err)
		}
	}
	return nil
}

// readExcluded learns what the map excluded holds.
func (p *Program) readExcluded() error {
	var key excludedKey
	var one uint8
	it := p.excluded.Iterate()
	for it.Next(&key, &one) {
		p.excludes[key.Port] = append(p.excludes[key.Port], key.TCPPort)
	}
	for port := range p.excludes {
		slices.Sort(p.excludes[port])
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("excluded ports: %w", err)
	}
	return nil
}
