package vring

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// splitDevice is the device side of a split virtqueue (section 2.7).
type splitDevice struct {
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
	log                bool // chains carry guest addresses
	err                error
	fence              fence
	table              []byte // copy of an indirect table
}

// newSplit makes the device side of a split ring. Of base it takes the index of the avail entry to go on at; the used index is
// read from the ring, where a device before us may have left it.
func newSplit(mem *guestmem.Table, l Layout, f virtio.Features, base Position) (Device, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if !mem.Retain() {
		return nil, guestmem.ErrClosed
	}
	n := l.Num
	d := &splitDevice{
		mem: mem, num: n, mask: uint16(n - 1),
		desc:       l.Desc[:DescBytes(n)],
		availRing:  l.Avail[ringStart : ringStart+2*n],
		usedRing:   l.Used[ringStart : ringStart+usedElem*n],
		availWord:  word32(l.Avail),
		usedWord:   word32(l.Used),
		usedEvent:  word16(l.Avail[ringStart+2*n:]),
		availEvent: word16(l.Used[ringStart+usedElem*n:]),
		next:       base.next,
		avail:      base.next,
		eventIdx:   f.Has(virtio.FEventIdx),
		indirect:   f.Has(virtio.FIndirectDesc),
		log:        f.Has(virtio.FLogAll),
		table:      make([]byte, MaxSegments*descSize),
	}
	ok := false
	defer func() {
		if !ok { // an error, or a panic
			_ = d.Close() // mem's owner has a hold: nothing is unmapped here, so nothing can fail
		}
	}()
	var word uint32
	if err := d.Touch(func() { word = atomic.LoadUint32(d.usedWord) }); err != nil {
		return nil, err
	}
	d.used = uint16(word >> 16)
	d.published, d.usedFlags = d.used, uint16(word) // one that died may have left kicks off: EnableNotify must see it
	ok = true
	return d, nil
}

// splitBase reads the 16 bits that a split ring's base has; the rest of the message's field is reserved.
func splitBase(num uint32) (Position, error) {
	if num > 0xffff {
		return Position{}, ErrBase
	}
	return Position{next: uint16(num)}, nil
}

func (d *splitDevice) Touch(fn func()) error { return d.mem.Touch(fn) }

func (d *splitDevice) Close() error {
	mem := d.mem
	if mem == nil {
		return nil
	}
	err := d.err
	*d = splitDevice{err: err}
	return mem.Release()
}

func (d *splitDevice) Next(c *Chain) (ok bool, err error) {
	if d.next == d.avail || d.err != nil {
		if d.look(); d.err != nil || d.next == d.avail {
			c.reset()
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
	c.At = d.Mark()
	d.next++
	return true, nil
}

// look reads avail.idx. It may never be more than the ring's size ahead of what we took (section 2.7.13.3.1).
func (d *splitDevice) look() {
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

func (d *splitDevice) Available(at Position) bool {
	d.look()
	return d.err != nil || d.avail != at.next
}

func (d *splitDevice) Mark() Position { return Position{next: d.next, used: d.used} }

func (d *splitDevice) Rewind(m Position) { d.next, d.used = m.next, m.used }

func (d *splitDevice) Push(used []Used) {
	ring, at, mask := d.usedRing, d.used, d.mask
	for _, u := range used {
		i := usedElem * int(at&mask)
		binary.LittleEndian.PutUint64(ring[i:i+usedElem], uint64(uint32(u.Head))|uint64(u.Written)<<32) // id, len
		at++
	}
	d.used = at
}

// Publish is one store of used.idx, and the decision about a call behind it.
func (d *splitDevice) Publish() (call bool) {
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

func (d *splitDevice) EnableNotify() (more bool) {
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

// DisableNotify leaves with EVENT_IDX an avail_event that avail.idx has passed: the one that EnableNotify asked for would bring the kick all
// the same, from a driver that answers what woke us. It passes it again with the 65536th chain, which does no harm.
func (d *splitDevice) DisableNotify() {
	if d.eventIdx {
		store16(d.availEvent, d.next-1)
	} else if d.usedFlags != noNotify {
		d.usedFlags = noNotify
		d.storeUsed()
	}
}

// storeUsed writes used.flags and used.idx, which only the device writes, as one word.
func (d *splitDevice) storeUsed() {
	atomic.StoreUint32(d.usedWord, uint32(d.usedFlags)|uint32(d.published)<<16)
}

// Base leaves the used index out: whoever goes on reads it from the ring.
func (d *splitDevice) Base() Position { return Position{next: d.next} }

func (d *splitDevice) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *splitDevice) Err() error { return d.err }
