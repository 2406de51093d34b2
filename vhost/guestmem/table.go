package guestmem

import (
	"errors"
)

// MaxRegions is the most regions a table may have: what KVM gives a guest (509 user memory slots), so
// that no guest can need more, and few enough that a table stays small.
const MaxRegions = 509

// Errors of this package. Those of translation carry no numbers, because the numbers come from a guest.
var (
	ErrRange        = errors.New("guest memory: address range outside of every region")
	ErrNoRegions    = errors.New("guest memory: table without regions")
	ErrTooMany      = errors.New("guest memory: too many regions")
	ErrEmpty        = errors.New("guest memory: region of size 0")
	ErrOverflow     = errors.New("guest memory: region wraps around the address space")
	ErrOverlap      = errors.New("guest memory: regions overlap")
	ErrNotMemory    = errors.New("guest memory: file is not shareable memory")
	ErrFileTooShort = errors.New("guest memory: file is shorter than the region")
	ErrNoSuchRegion = errors.New("guest memory: no such region")
)

// Region describes one region as a front-end sends it. Addresses and sizes are in bytes.
type Region struct {
	GPA    uint64 // first guest physical address
	Size   uint64
	UVA    uint64 // first address in the front-end's address space
	Offset uint64 // of the region in the file
	FD     int    // the file; only borrowed for the call
}

// Table translates guest addresses. It is immutable and safe for concurrent use until Close.
type Table struct{ regions []region }

type region struct {
	gpa, size, uva uint64
	mem            []byte
}

// Map validates and maps the regions. The file descriptors stay the caller's.
func Map(regions []Region) (*Table, error) { return nil, ErrNoRegions }

// FromBytes makes a table of one region over memory that the caller owns (tests give it Go heap).
func FromBytes(gpa, uva uint64, mem []byte) *Table {
	return &Table{[]region{{gpa, uint64(len(mem)), uva, mem}}}
}

// Part is one region over memory that the caller owns.
type Part struct {
	GPA, UVA uint64
	Mem      []byte
}

// FromParts is FromBytes for several regions.
func FromParts(parts ...Part) (*Table, error) { return nil, nil }

// Replace maps a whole new set of regions and returns a new table; regions that name the same bytes of the same file
// as one of t keep their mapping. t stays valid until it is closed.
func (t *Table) Replace(regions []Region) (*Table, error) { return nil, nil }

// Add maps one more region and returns a new table that shares t's mappings. t stays valid until it is closed.
func (t *Table) Add(r Region) (*Table, error) { return nil, nil }

// Remove returns a new table without the region of exactly that GPA, UVA and Size; Offset and FD are ignored.
// t stays valid until it is closed. The new table may be empty.
func (t *Table) Remove(r Region) (*Table, error) { return nil, nil }

// Close drops the table's hold on its mappings; those that no other table shares are unmapped. Slices got from the
// table must not be touched afterwards. Closing twice is harmless.
func (t *Table) Close() error { return nil }

// Len is the number of regions.
func (t *Table) Len() int { return len(t.regions) }

// Regions describes the table, FD being -1.
func (t *Table) Regions() []Region { return nil }

// Sealed says whether every region's file can no longer shrink (F_SEAL_SHRINK), that is, no SIGBUS can be provoked.
func (t *Table) Sealed() bool { return false }

// Slice returns the n bytes at a guest physical address, which must lie in one region.
func (t *Table) Slice(gpa, n uint64) ([]byte, error) { return nil, ErrRange }

// Append appends the n bytes at a guest physical address to dst, as one slice or, where they run on into adjacent
// regions, several. It allocates only when dst's capacity does not suffice. On error dst comes back as it was.
func (t *Table) Append(dst [][]byte, gpa, n uint64) ([][]byte, error) { return dst, ErrRange }

// SliceUVA returns the n bytes at an address of the front-end, which must lie in one region.
func (t *Table) SliceUVA(uva, n uint64) ([]byte, error) { return nil, ErrRange }
