package vring

import (
	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Device is the device side of a ring, whatever its format. It is not safe for concurrent use; several rings do not
// share anything.
//
// A burst of a receive queue looks like this:
//
//	for need > 0 {
//		ok, err := d.Next(&c)              // chains in the order the driver made them available
//		if !ok { d.Rewind(first); break }  // the guest sees nothing; first is c.At of the first chain
//		... note c.Writable and Used{c.Head, c.WriteLen}
//	}
//	... copy
//	d.Push(used)
//	if d.Publish() { ... one call for the burst }
//
// A call through the interface costs time in a path where a small frame takes 100 ns. So a frame costs one for each chain
// (Next) and one for all of them (Push); that it can be undone costs none, because Chain.At is noted on the way.
//
// After a fault in guest memory (see the package comment) a Device is in no defined state and must be dropped. Dropped
// or not, its memory stays mapped until Close.
type Device interface {
	// Next takes the next available chain into c. ok is false when there is none, and then c is empty. An error means
	// that the driver broke the rules; it wraps [ErrBadIndex], [ErrBadChain] or [ErrOutOfRegion] and stays: the ring
	// gives nothing any more, and the bad chain counts as not taken.
	Next(c *Chain) (ok bool, err error)
	// Mark is the place that the ring is at: how far chains were taken and pushed. Chain.At is what it was before that
	// chain. It is outdated by the next Publish.
	Mark() Position
	// Rewind gives back every chain taken since the mark and forgets every Push since, as if nothing had happened; Next
	// will read those chains afresh. The driver cannot tell, apart from the buffers' bytes, which are ours until used.
	Rewind(m Position)
	// Push notes that the device is done with chains. The driver sees it after Publish. Chains should be pushed in the
	// order they were taken: then a front-end that loses us knows from the ring alone where to go on.
	Push(used []Used)
	// Publish makes everything pushed visible at once and says whether the driver wants a call. With nothing pushed it
	// does nothing. All chains of a frame must be published together: a Linux guest that sees the first one expects the
	// others to be there.
	Publish() (call bool)

	// Base is where another device goes on, the answer to VHOST_USER_GET_VRING_BASE. It counts chains that were taken
	// and not pushed as taken: rewind or push them first.
	Base() Position
	// Available says whether the driver has made a chain available at a place behind which Next found none: one look,
	// and nothing is taken. It also says true when the ring is broken: Next has the reason.
	Available(at Position) bool
	// EnableNotify asks the driver for a kick when it makes the next chain available, and says whether that has happened
	// already: then there may be no kick, and the caller must not sleep.
	EnableNotify() (more bool)
	// DisableNotify tells the driver that kicks are not needed; it may kick all the same.
	DisableNotify()
	// Resume looks whether the base leaves chains behind, and goes on where the ring proves that it was left. Call it
	// once, before the first Next, inside Touch.
	Resume() Resumption
	// Rejoin goes on where a device of this package left the ring, however suddenly, whatever the base was: such a one completes
	// in order, so that is used.idx, and lost chains behind it where that device had gone on so (Resumption.Lost). Call it instead of
	// Resume.
	Rejoin(lost int)

	// Fail breaks the ring on the caller's account, for what only the caller can judge, such as [ErrReadable] in a
	// receive queue. The first error stays.
	Fail(err error)
	// Err says why the ring is broken, or nil.
	Err() error
	// Touch runs fn, which may call methods of the device, and returns guestmem.ErrFault where the memory has vanished.
	// It is for the control side: see [guestmem.Table.Touch].
	Touch(fn func()) error
	// Close lets go of the guest's memory, which may be unmapped then. No slice of a chain and no method may be used
	// afterwards: a call of one is a nil pointer, never somebody else's memory. Closing twice is harmless.
	Close() error
}

// Head names a chain from Next to Push. What the number means is the ring format's: the index of the first descriptor in
// a split ring; in a packed ring it would hold the buffer ID and how many descriptors the chain took.
type Head uint32

// Used is a chain that the device is done with: a used element (section 2.7.8).
type Used struct {
	Head    Head
	Written uint32 // bytes, in total, to the writable part
}

// Position is a place in a ring: where the next chain is taken and where the next one is pushed. Positions of one ring
// may be compared. What they hold is the ring format's: an index each in a split ring; in a packed ring each would be an
// index of 15 bits below its wrap counter.
type Position struct{ next, used uint16 }

// Num is the position as VHOST_USER_GET_VRING_BASE carries it: the one half in the lower 16 bits, the other above them. A
// split ring leaves the upper half out of its Base.
func (p Position) Num() uint32 { return uint32(p.next) | uint32(p.used)<<16 }

// format is what differs between the formats of a ring before it runs. A new one is a file with a Device of its own and
// a line in formatOf.
type format struct {
	size  func(num int) bool
	base  func(num uint32) (Position, error)
	bytes func(num int) (desc, avail, used int)
	open  func(mem *guestmem.Table, l Layout, f virtio.Features, base Position) (Device, error)
}

// formatOf is the ring format that was negotiated. Features.Check knows no other than split yet.
func formatOf(virtio.Features) format {
	return format{size: validSize, base: splitBase, bytes: splitBytes, open: newSplit}
}

// ValidSize says whether a ring of the format that f says may have num descriptors.
func ValidSize(f virtio.Features, num int) bool { return formatOf(f).size(num) }

// ParseBase reads the position that VHOST_USER_SET_VRING_BASE carries, for a ring of the format that f says. The error is
// [ErrBase].
func ParseBase(f virtio.Features, num uint32) (Position, error) { return formatOf(f).base(num) }

// AreaBytes is how long the three pieces of a ring of num descriptors are, in the format that f says.
func AreaBytes(f virtio.Features, num int) (desc, avail, used int) { return formatOf(f).bytes(num) }

// NewDevice makes the device side of a ring, in the format that f says. base is where it goes on
// (VHOST_USER_SET_VRING_BASE). Of f, INDIRECT_DESC, EVENT_IDX and LOG_ALL matter beside that; with LOG_ALL, chains carry
// guest addresses. The ring is not written to. Kicks are on until DisableNotify. The device has a hold on mem until Close.
// Errors: [ErrRingSize], [ErrRingShort], [ErrAlign], [ErrAvailAlign], [ErrByteOrder], and of package guestmem ErrFault,
// ErrClosed.
func NewDevice(mem *guestmem.Table, l Layout, f virtio.Features, base Position) (Device, error) {
	return formatOf(f).open(mem, l, f, base)
}
