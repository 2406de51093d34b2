package vring

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Device is the device side of a ring. It is not safe for concurrent use; several rings do not share anything.
//
// A burst of a receive queue looks like this:
//
//	m := d.Mark()
//	for need > 0 {
//		ok, err := d.Next(&c)           // chains in avail order
//		if !ok { d.Rewind(m); break }   // the guest sees nothing
//		... copy into c.Writable, d.Push(c.Head, written)
//	}
//	if d.Publish() { ... one call for the burst }
//
// After a fault in guest memory (see the package comment) a Device is in no defined state and must be dropped. Dropped
// or not, its memory stays mapped until Close.
type Device struct {
	mem  *guestmem.Table
	num  int
	mask uint16

	desc      []byte // the descriptor table
	availRing []byte // num heads
	usedRing  []byte // num elements

	availWord  *uint32 // the driver's: flags, idx
	usedWord   *uint32 // ours: flags, idx
	usedEvent  *uint16 // the driver's: call me when used.idx passes this
	availEvent *uint16 // ours: kick me when avail.idx passes this

	next      uint16 // avail entry to take next
	avail     uint16 // avail.idx as last seen
	used      uint16 // used entry to fill next
	published uint16 // used.idx as the driver sees it
	usedFlags uint16 // used.flags as the driver sees it

	called     uint16 // published at the last decision about a call
	calledOnce bool   // called is meaningful

	eventIdx, indirect bool
	err                error
	fence              fence
	table              []byte // copy of an indirect table
}

// Mark is a place in the ring to which [Device.Rewind] goes back. It is outdated by the next Publish.
type Mark struct{ next, used uint16 }

// NewDevice makes the device side of a ring. base is the index of the first avail entry to take
// (VHOST_USER_SET_VRING_BASE); the used index is read from the ring, where a device before us may have left it. Of f,
// INDIRECT_DESC and EVENT_IDX matter. The ring is not written to. Kicks are on until DisableNotify. The device has a
// hold on mem until Close.
// Errors: [ErrRingSize], [ErrRingShort], [ErrAlign], [ErrAvailAlign], [ErrByteOrder], and of package guestmem ErrFault,
// ErrClosed.
func NewDevice(mem *guestmem.Table, l Layout, f virtio.Features, base uint16) (*Device, error) {
	d := &Device{
		next:     base,
		avail:    base,
		eventIdx: f.Has(virtio.FEventIdx),
		indirect: f.Has(virtio.FIndirectDesc),
		table:    make([]byte, MaxSegments*descSize),
	}
	if err := d.SetMemory(mem, l); err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			_ = d.Close() // mem's owner has a hold: nothing is unmapped here, so nothing can fail
		}
	}()
	if err := d.Touch(func() { d.used = uint16(atomic.LoadUint32(d.usedWord) >> 16) }); err != nil {
		return nil, err
	}
	d.published = d.used
	ok = true
	return d, nil
}

// Touch runs fn, which may call methods of d, and returns guestmem.ErrFault where the memory has vanished. It is for the
// control side: see [guestmem.Table.Touch].
func (d *Device) Touch(fn func()) error { return d.mem.Touch(fn) }

// Close lets go of the guest's memory, which may be unmapped then. No slice of a chain and no method of d may be used
// afterwards: a call of one is a nil pointer, never somebody else's memory. Closing twice is harmless.
func (d *Device) Close() error {
	mem := d.mem
	if mem == nil {
		return nil
	}
	err := d.err
	*d = Device{err: err}
	return mem.Release()
}

// SetMemory puts the ring on another table and other slices, after the front-end changed its memory; indexes stay. On
// error nothing changes. Chains taken but not pushed must be pushed or rewound before; their slices are void. The hold
// moves to the new table.
func (d *Device) SetMemory(mem *guestmem.Table, l Layout) error {
	if err := l.check(); err != nil {
		return err
	}
	if d.num != 0 && d.num != l.Num {
		return ErrRingSize
	}
	if !mem.Retain() {
		return guestmem.ErrClosed
	}
	if d.mem != nil {
		defer d.mem.Release()
	}
	n := l.Num
	d.mem, d.num, d.mask = mem, n, uint16(n-1)
	d.desc = l.Desc[:DescBytes(n)]
	d.availRing = l.Avail[ringStart : ringStart+2*n]
	d.usedRing = l.Used[ringStart : ringStart+usedElem*n]
	d.availWord = word32(l.Avail)
	d.usedWord = word32(l.Used)
	d.usedEvent = word16(l.Avail[ringStart+2*n:])
	d.availEvent = word16(l.Used[ringStart+usedElem*n:])
	return nil
}

// Next takes the next available chain into c. ok is false when there is none, and then c is empty. An error means that
// the driver broke the rules; it wraps [ErrBadIndex], [ErrBadChain] or [ErrOutOfRegion] and stays: the ring gives
// nothing any more, and the bad chain counts as not taken.
func (d *Device) Next(c *Chain) (ok bool, err error) {
	c.reset()
	if d.next == d.avail || d.err != nil {
		if d.look(); d.err != nil || d.next == d.avail {
			return false, d.err
		}
	}
	// d.avail came from an atomic load (acquire), so the head and the descriptors that the driver wrote before it
	// moved avail.idx are visible (section 2.7.13.3: the driver's barrier; this is its counterpart).
	head := binary.LittleEndian.Uint16(d.availRing[2*int(d.next&d.mask):])
	if err := d.collect(c, head); err != nil {
		c.reset()
		d.err = err
		return false, err
	}
	d.next++
	return true, nil
}

// look reads avail.idx. It may never be more than the ring's size ahead of what we took (section 2.7.13.3.1).
func (d *Device) look() {
	if d.err != nil {
		return
	}
	idx := uint16(atomic.LoadUint32(d.availWord) >> 16)
	if int(idx-d.next) > d.num {
		d.err = ErrAvailJump
		return
	}
	d.avail = idx
}

// Pending looks at the ring and returns how many chains are available; 0 if the ring is broken.
func (d *Device) Pending() int {
	if d.look(); d.err != nil {
		return 0
	}
	return int(d.avail - d.next)
}

// Mark notes how far chains were taken and pushed.
func (d *Device) Mark() Mark { return Mark{next: d.next, used: d.used} }

// Rewind gives back every chain taken since the mark and forgets every Push since, as if nothing had happened; Next
// will read those chains afresh. The driver cannot tell, apart from the buffers' bytes, which are ours until used.
func (d *Device) Rewind(m Mark) { d.next, d.used = m.next, m.used }

// Push notes that the device is done with a chain and wrote written bytes, in total, to its writable part. The driver
// sees it after Publish. Chains should be pushed in the order they were taken: then a front-end that loses us knows
// from used.idx alone where to go on.
func (d *Device) Push(head uint16, written uint32) {
	e := d.usedRing[usedElem*int(d.used&d.mask):]
	binary.LittleEndian.PutUint32(e[0:4], uint32(head))
	binary.LittleEndian.PutUint32(e[4:8], written)
	d.used++
}

// Publish makes everything pushed visible with one store of used.idx and says whether the driver wants a call. With
// nothing pushed it does nothing. All chains of a frame must be published together: a Linux guest that sees the first
// one expects the others to be there.
func (d *Device) Publish() (call bool) {
	if d.used == d.published {
		return false
	}
	d.published = d.used
	// Release: buffers and used elements are visible before the index (section 2.7.8.2, 2.7.14).
	d.storeUsed()
	// The index must be visible before we look whether the driver sleeps, or both would wait for each other
	// (section 2.7.10.1: the driver writes used_event, fences, and looks at used.idx; we do it the other way round).
	d.fence.full()
	if !d.eventIdx {
		return atomic.LoadUint32(d.availWord)&noInterrupt == 0
	}
	old, known := d.called, d.calledOnce
	d.called, d.calledOnce = d.published, true
	// After a start nobody knows what the driver has seen: call once for sure.
	return !known || needEvent(load16(d.usedEvent), d.published, old)
}

// EnableNotify asks the driver for a kick when it makes the next chain available, and says whether that has happened
// already: then there may be no kick, and the caller must not sleep.
func (d *Device) EnableNotify() (more bool) {
	if d.eventIdx {
		store16(d.availEvent, d.next)
	} else if d.usedFlags != 0 {
		d.usedFlags = 0
		d.storeUsed()
	}
	// The wish must be visible before we look again: a driver that moved avail.idx before it saw the wish will not
	// kick, but then we see its index here (section 2.7.10.1 and 2.7.13.4.1).
	d.fence.full()
	d.look()
	return d.err != nil || d.avail != d.next
}

// DisableNotify tells the driver that kicks are not needed; it may kick all the same. With EVENT_IDX there is nothing
// to do: avail.idx passes avail_event once and then for 65536 chains not again.
func (d *Device) DisableNotify() {
	if !d.eventIdx && d.usedFlags != noNotify {
		d.usedFlags = noNotify
		d.storeUsed()
	}
}

// storeUsed writes used.flags and used.idx, which only the device writes, as one word.
func (d *Device) storeUsed() {
	atomic.StoreUint32(d.usedWord, uint32(d.usedFlags)|uint32(d.published)<<16)
}

// Base is the index of the avail entry to take next, the answer to VHOST_USER_GET_VRING_BASE. It counts chains that
// were taken and not pushed as taken: rewind or push them first.
func (d *Device) Base() uint16 { return d.next }

// UsedIndex is used.idx as the driver sees it.
func (d *Device) UsedIndex() uint16 { return d.published }

// Fail breaks the ring on the caller's account, for what only the caller can judge, such as [ErrReadable] in a receive
// queue. The first error stays.
func (d *Device) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// Err says why the ring is broken, or nil.
func (d *Device) Err() error { return d.err }
