package guestmem

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// MaxRegions is the most regions a table may have: the memory slots that KVM gives a guest for its own use, so no
// guest can need more.
const MaxRegions = 509

// Errors of this package. Those of translation carry no numbers, because the numbers come from a guest.
var (
	ErrRange        = errors.New("guest memory: address range outside of every region")
	ErrNoRegions    = errors.New("guest memory: table without regions")
	ErrTooMany      = errors.New("guest memory: too many regions")
	ErrTooMuch      = errors.New("guest memory: more than this machine could hold or this process map")
	ErrEmpty        = errors.New("guest memory: region of size 0")
	ErrOverflow     = errors.New("guest memory: region wraps around the address space")
	ErrOverlap      = errors.New("guest memory: regions overlap")
	ErrNoSuchRegion = errors.New("guest memory: no such region")
	ErrClosed       = errors.New("guest memory: table is closed")
	ErrFault        = errors.New("guest memory vanished while in use") // of Touch
)

// Region describes one region as a front-end sends it. Addresses and sizes are in bytes.
type Region struct {
	GPA    uint64 // first guest physical address
	Size   uint64
	UVA    uint64 // first address in the front-end's address space
	Offset uint64 // of the region in the file
	FD     int    // the file; only borrowed for the call
	// Dev and Ino name that file, as stat(2) does. Only Table.Regions tells them.
	Dev, Ino uint64
}

// Table translates guest addresses. It is immutable and safe for concurrent use.
//
// Its memory stays mapped for as long as anybody has a hold on it: its owner, who got it from Map and lets go with Close,
// and everyone else who keeps slices of it and says so with Retain and Release. So it does not matter what happens to the
// owner first: whoever forgets to let go keeps address space, and nobody's slices ever point at what somebody else has
// mapped there since.
type Table struct {
	opt     Options
	regions []region     // ascending GPA, no overlap, none empty
	holds   atomic.Int64 // 1 for the owner and one for every Retain; 0 for ever once unmapped
	closed  atomic.Bool  // the owner's hold is gone
}

// Options hold for a table and for those made from it.
type Options struct {
	// Touching is called before each Touch, in tests, which take the memory away there. nil otherwise.
	Touching func()
	// AnyFile allows memory on any file system but FUSE, at the risk of whoever copies there: see memoryFS.
	AnyFile bool
	// Budget is shared with the tables of other guests; nil is no bound.
	Budget *Budget
}

// NewTable makes a table without regions, to begin with.
func NewTable(o Options) *Table {
	t := &Table{opt: o}
	t.holds.Store(1)
	return t
}

type region struct {
	gpa, size, uva uint64
	mem            []byte   // size bytes, capacity cut to them
	m              *mapping // nil when the caller owns mem
}

// Part is one region over memory that the caller owns.
type Part struct {
	GPA, UVA uint64
	Mem      []byte
}

// Map validates and maps the regions. The file descriptors stay the caller's and may be closed afterwards: the table keeps
// descriptors of its own, one for each distinct region, which count against RLIMIT_NOFILE.
// On error nothing stays mapped.
func Map(regions []Region) (*Table, error) {
	none := NewTable(Options{})
	defer none.Close()
	return none.Replace(regions)
}

// FromBytes makes a table of one region over memory that the caller owns; tests give it Go heap, so that the race
// detector sees it. An empty mem gives an empty table.
func FromBytes(gpa, uva uint64, mem []byte) *Table {
	t := NewTable(Options{})
	if len(mem) > 0 {
		t.regions = []region{{gpa: gpa, size: uint64(len(mem)), uva: uva, mem: mem[:len(mem):len(mem)]}}
	}
	return t
}

// FromParts is FromBytes for several regions, with the checks of Map.
func FromParts(parts ...Part) (*Table, error) {
	t := NewTable(Options{})
	for _, p := range parts {
		r := region{gpa: p.GPA, size: uint64(len(p.Mem)), uva: p.UVA, mem: p.Mem[:len(p.Mem):len(p.Mem)]}
		if err := checkRange(r.gpa, r.size, r.uva, 0); err != nil {
			return nil, err
		}
		if err := t.insert(r); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Replace maps a whole new set of regions and returns a new table. A region that names the same bytes of the same
// file as one of t keeps that mapping: a front-end sends its unchanged table again whenever the guest resumes. t stays
// valid until it is closed.
func (t *Table) Replace(regions []Region) (*Table, error) {
	if len(regions) == 0 {
		return nil, ErrNoRegions
	}
	nt := NewTable(t.opt)
	for _, r := range regions {
		if err := nt.mapRegion(r, t); err != nil {
			nt.Close()
			return nil, err
		}
	}
	return nt, nil
}

// Add maps one more region and returns a new table that shares t's mappings (VHOST_USER_ADD_MEM_REG). t stays valid
// until it is closed, also when Add fails.
func (t *Table) Add(r Region) (*Table, error) {
	nt := t.share()
	if err := nt.mapRegion(r, t); err != nil {
		nt.Close()
		return nil, err
	}
	return nt, nil
}

// Remove returns a new table without the region of exactly that GPA, UVA and Size (VHOST_USER_REM_MEM_REG); Offset and
// FD are ignored, as front-ends fill them differently. t stays valid until it is closed. The new table may be empty.
func (t *Table) Remove(r Region) (*Table, error) {
	nt := t.share()
	i := slices.IndexFunc(nt.regions, func(o region) bool { return o.gpa == r.GPA && o.uva == r.UVA && o.size == r.Size })
	if i < 0 {
		nt.Close()
		return nil, ErrNoSuchRegion
	}
	gone := nt.regions[i].m
	nt.regions = slices.Delete(nt.regions, i, i+1)
	if err := gone.release(); err != nil {
		nt.Close()
		return nil, err
	}
	return nt, nil
}

// Has says whether the table holds r already: the same bytes of the same file at the same addresses. It looks at r.FD
// only when the rest agrees.
func (t *Table) Has(r Region) bool {
	i := slices.IndexFunc(t.regions, func(o region) bool { return o.gpa == r.GPA && o.uva == r.UVA && o.size == r.Size })
	if i < 0 || t.regions[i].m == nil || t.regions[i].m.id.offset != r.Offset {
		return false
	}
	id, _, err := inspect(r, t.opt)
	return err == nil && id == t.regions[i].m.id
}

// Close ends the owner's hold. Slices that nobody holds by Retain must not be touched afterwards. Closing twice, or
// nil, is harmless.
func (t *Table) Close() error {
	if t == nil || t.closed.Swap(true) {
		return nil
	}
	return t.Release()
}

// Retain adds a hold: until its Release the memory stays mapped, whoever else lets go. false means that the table has
// been unmapped already.
func (t *Table) Retain() bool {
	for n := t.holds.Load(); n > 0; n = t.holds.Load() {
		if t.holds.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// Release ends a hold. With the last one, mappings that no other table shares are unmapped: the caller has forgotten all
// slices of them before.
func (t *Table) Release() error {
	n := t.holds.Add(-1)
	if n < 0 {
		panic("guest memory: released more often than held")
	}
	if n > 0 {
		return nil
	}
	var errs []error
	for i := range t.regions {
		errs = append(errs, t.regions[i].m.release())
	}
	return errors.Join(errs...)
}

// Len is the number of regions.
func (t *Table) Len() int { return len(t.regions) }

// Regions describes the table in ascending GPA. FD stays the table's, and is open for as long as its memory is mapped; it is -1
// for memory of the caller's own.
func (t *Table) Regions() []Region {
	out := make([]Region, len(t.regions))
	for i, r := range t.regions {
		out[i] = Region{GPA: r.gpa, Size: r.size, UVA: r.uva, FD: -1}
		if r.m != nil {
			out[i].Offset, out[i].FD = r.m.id.offset, r.m.fd
			out[i].Dev, out[i].Ino = r.m.id.dev, r.m.id.ino
		}
	}
	return out
}

// Sealed says whether no region's file can shrink any more (F_SEAL_SHRINK), so that the front-end cannot provoke a
// fault by truncating it. Memory of the caller's own counts as sealed.
func (t *Table) Sealed() bool {
	for i := range t.regions {
		if m := t.regions[i].m; m != nil && !m.sealed {
			return false
		}
	}
	return true
}

// share copies the table, counting the mappings once more.
func (t *Table) share() *Table {
	nt := NewTable(t.opt)
	nt.regions = slices.Clone(t.regions)
	for i := range nt.regions {
		nt.regions[i].m.retain()
	}
	return nt
}

// mapRegion validates r and adds it to t, which nobody else sees yet. A mapping of old is used again if it fits.
// Cheap checks come first, so that a hostile message costs little.
func (t *Table) mapRegion(r Region, old *Table) error {
	if err := checkRange(r.GPA, r.Size, r.UVA, r.Offset); err != nil {
		return err
	}
	if err := t.vacant(r.GPA, r.Size); err != nil {
		return err
	}
	if err := t.affordable(r.Size); err != nil {
		return err
	}
	m, err := old.mappingFor(r, len(t.regions))
	if err != nil {
		return err
	}
	if err := t.insert(region{gpa: r.GPA, size: r.Size, uva: r.UVA, mem: m.region(), m: m}); err != nil {
		m.release()
		return err
	}
	return nil
}

// mappingFor finds or makes the mapping of r, counted once for the caller, whose table has so many regions.
func (t *Table) mappingFor(r Region, regions int) (*mapping, error) {
	id, f, err := inspect(r, t.opt)
	if err != nil {
		return nil, err
	}
	for i := range t.regions {
		if m := t.regions[i].m; m != nil && m.id == id {
			m.retain()
			return m, nil
		}
	}
	return newMapping(r.FD, id, f, t.opt.Budget, regions)
}

func (t *Table) insert(r region) error {
	if err := t.vacant(r.gpa, r.size); err != nil {
		return err
	}
	i, _ := slices.BinarySearchFunc(t.regions, r.gpa, func(o region, gpa uint64) int { return cmp.Compare(o.gpa, gpa) })
	t.regions = slices.Insert(t.regions, i, r)
	return nil
}

// vacant says whether a region of that range may be added. Ranges of UVA may coincide: a front-end may show the same
// memory at two guest addresses.
func (t *Table) vacant(gpa, size uint64) error {
	if len(t.regions) >= MaxRegions {
		return ErrTooMany
	}
	for i := range t.regions {
		o := &t.regions[i]
		if gpa < o.gpa+o.size && o.gpa < gpa+size {
			return ErrOverlap
		}
	}
	return nil
}

// affordable refuses regions that are mostly holes. A file may claim any length; mapped, it takes address space, of which
// the whole process has 128 TiB, and when that is used up the runtime cannot grow any heap.
func (t *Table) affordable(size uint64) error {
	limit, err := memoryLimit()
	if err != nil {
		return err
	}
	for i := range t.regions {
		limit -= min(limit, t.regions[i].size)
	}
	if size > limit {
		return ErrTooMuch
	}
	return nil
}

// checkRange refuses what cannot be a region whatever the file holds.
func checkRange(gpa, size, uva, offset uint64) error {
	const maxInt = uint64(1<<63 - 1) // of off_t and of a slice's length
	switch {
	case size == 0:
		return ErrEmpty
	case gpa+size < gpa, uva+size < uva:
		return ErrOverflow
	case offset > maxInt, size > maxInt-offset:
		return fmt.Errorf("offset and size: %w", ErrOverflow)
	}
	return nil
}
