package vring

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// Buffer is one piece of a chain that a driver posts. Addr is a guest physical address; the driver side never looks
// behind it.
type Buffer struct {
	Addr     uint64
	Len      uint32
	Writable bool // by the device
}

// IndirectArea is memory for indirect tables, one for each descriptor of the ring. The zero value means that chains are
// posted descriptor by descriptor.
type IndirectArea struct {
	Mem     []byte // at least IndirectBytes, aligned to 16 bytes
	GPA     uint64 // guest physical address of Mem
	Entries int    // longest chain
}

// IndirectBytes is the size in bytes of an [IndirectArea] for a ring of num descriptors and chains of up to entries buffers.
func IndirectBytes(num, entries int) int { return descSize * num * entries }

// Driver is the driver side of a ring. It is not safe for concurrent use. After NewDriver nothing allocates.
//
// It does not trust the device either: a chain that was not posted comes back as an error ([Driver.Err]), never as a panic.
type Driver struct {
	num  int
	mask uint16

	desc, availRing, usedRing []byte

	availWord  *uint32 // ours: flags, idx
	usedWord   *uint32 // the device's: flags, idx
	usedEvent  *uint16 // ours
	availEvent *uint16 // the device's

	area               IndirectArea
	eventIdx, indirect bool

	slots []slot // by descriptor
	free  uint16 // first free descriptor, linked by slots[].link
	nfree int

	avail      uint16 // avail entry to fill next
	published  uint16 // avail.idx as the device sees it
	availFlags uint16
	used       uint16 // used entry to pop next
	seen       uint16 // used.idx as last seen
	out        int    // chains posted and not popped

	err   error
	fence fence
}

// slot is what we remember of a descriptor; guest memory is never read back.
type slot struct {
	token    uint64
	writable uint64 // bytes of the chain that begins here that the device may write
	link     uint16 // next descriptor of the chain, or of the free list
	count    uint16 // descriptors of the chain that begins here; 0 if none does
}

// NewDriver makes the driver side of a fresh ring: it clears its flags, indexes and events. It uses indirect tables if
// area is given and f has INDIRECT_DESC. Errors: those of a bad layout, and [ErrNoArea].
func NewDriver(l Layout, f virtio.Features, area IndirectArea) (*Driver, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	n := l.Num
	d := &Driver{
		num: n, mask: uint16(n - 1),
		desc:      l.Desc[:DescBytes(n)],
		availRing: l.Avail[ringStart : ringStart+2*n],
		usedRing:  l.Used[ringStart : ringStart+usedElem*n],
		availWord: word32(l.Avail), usedWord: word32(l.Used),
		usedEvent:  word16(l.Avail[ringStart+2*n:]),
		availEvent: word16(l.Used[ringStart+usedElem*n:]),
		eventIdx:   f.Has(virtio.FEventIdx),
		indirect:   area.Mem != nil && f.Has(virtio.FIndirectDesc),
		area:       area,
		slots:      make([]slot, n),
		nfree:      n,
	}
	if d.indirect && (area.Entries < 1 || area.Entries > MaxSize || len(area.Mem) < IndirectBytes(n, area.Entries) || !aligned(area.Mem, 16)) {
		return nil, ErrNoArea
	}
	for i := range d.slots {
		d.slots[i].link = uint16(i + 1)
	}
	store16(d.usedEvent, 0)
	store16(d.availEvent, 0)
	atomic.StoreUint32(d.usedWord, 0)
	atomic.StoreUint32(d.availWord, 0)
	return d, nil
}

// Add posts a chain, readable buffers first; the device sees it after Publish. token comes back from Used. Errors:
// [ErrRingFull] (try again after Used), [ErrBadBuffers], and the sticky one of Err.
func (d *Driver) Add(bufs []Buffer, token uint64) error {
	if d.err != nil {
		return d.err
	}
	writable, err := checkBuffers(bufs)
	if err != nil {
		return err
	}
	indirect := d.indirect && len(bufs) > 1
	count := len(bufs)
	switch {
	case indirect && count > d.area.Entries, !indirect && count > d.num:
		return ErrBadBuffers
	case indirect:
		count = 1
	}
	if count > d.nfree {
		return ErrRingFull
	}
	head := d.free
	if indirect {
		d.writeIndirect(head, bufs)
		d.free = d.slots[head].link
	} else {
		d.writeDirect(bufs)
	}
	d.nfree -= count
	s := &d.slots[head]
	s.token, s.writable, s.count = token, writable, uint16(count)
	binary.LittleEndian.PutUint16(d.availRing[2*int(d.avail&d.mask):], head)
	d.avail++
	d.out++
	return nil
}

func checkBuffers(bufs []Buffer) (writable uint64, err error) {
	if len(bufs) == 0 {
		return 0, ErrBadBuffers
	}
	for i := range bufs {
		b := &bufs[i]
		if b.Len == 0 || !b.Writable && writable > 0 {
			return 0, ErrBadBuffers
		}
		if b.Writable {
			writable += uint64(b.Len)
		}
	}
	return writable, nil
}

// writeDirect fills one descriptor per buffer, taking them off the free list.
func (d *Driver) writeDirect(bufs []Buffer) {
	for i := range bufs {
		at, flags, next := d.free, flagsOf(&bufs[i]), uint16(0)
		d.free = d.slots[at].link
		if i+1 < len(bufs) {
			flags, next = flags|DescNext, d.free
		}
		writeDescriptor(d.desc, int(at), descriptor{bufs[i].Addr, bufs[i].Len, flags, next})
	}
}

// writeIndirect fills the table that belongs to descriptor head, and head itself.
func (d *Driver) writeIndirect(head uint16, bufs []Buffer) {
	off := int(head) * d.area.Entries * descSize
	table := d.area.Mem[off:]
	for i := range bufs {
		flags, next := flagsOf(&bufs[i]), uint16(0)
		if i+1 < len(bufs) {
			flags, next = flags|DescNext, uint16(i+1)
		}
		writeDescriptor(table, i, descriptor{bufs[i].Addr, bufs[i].Len, flags, next})
	}
	writeDescriptor(d.desc, int(head), descriptor{d.area.GPA + uint64(off), uint32(len(bufs) * descSize), DescIndirect, 0})
}

func flagsOf(b *Buffer) uint16 {
	if b.Writable {
		return DescWrite
	}
	return 0
}

func writeDescriptor(table []byte, i int, x descriptor) {
	b := table[i*descSize : i*descSize+descSize]
	binary.LittleEndian.PutUint64(b[0:8], x.addr)
	binary.LittleEndian.PutUint32(b[8:12], x.len)
	binary.LittleEndian.PutUint16(b[12:14], x.flags)
	binary.LittleEndian.PutUint16(b[14:16], x.next)
}

// Publish makes everything added visible with one store of avail.idx and says whether the device wants a kick. With
// nothing added it does nothing.
func (d *Driver) Publish() (kick bool) {
	if d.avail == d.published {
		return false
	}
	old := d.published
	d.published = d.avail
	// Release: descriptors, tables and heads are visible before the index (section 2.7.13.3).
	d.storeAvail()
	// The index must be visible before we look whether the device sleeps (section 2.7.13.4.1).
	d.fence.full()
	if d.eventIdx {
		return needEvent(load16(d.availEvent), d.published, old)
	}
	return atomic.LoadUint32(d.usedWord)&noNotify == 0
}

// Used pops the next chain that the device is done with: its token and the bytes written, at most what the chain holds
// unless it holds nothing writable. ok is false when there is none, or the ring is broken: see Err.
func (d *Driver) Used() (token uint64, n uint32, ok bool) {
	if d.err != nil || d.used == d.seen && !d.look() {
		return 0, 0, false
	}
	// d.seen came from an atomic load (acquire): element and buffers are visible (section 2.7.14).
	e := d.usedRing[usedElem*int(d.used&d.mask):]
	id := binary.LittleEndian.Uint32(e[0:4])
	n = binary.LittleEndian.Uint32(e[4:8])
	if int64(id) >= int64(d.num) || d.slots[id].count == 0 {
		d.err = ErrUsedID
		return 0, 0, false
	}
	s := &d.slots[id]
	if s.writable > 0 && uint64(n) > s.writable {
		d.err = ErrUsedLen
		return 0, 0, false
	}
	token = s.token
	d.release(uint16(id))
	d.used++
	d.out--
	return token, n, true
}

// look reads used.idx and says whether a chain is waiting.
func (d *Driver) look() bool {
	if d.err != nil {
		return false
	}
	idx := uint16(atomic.LoadUint32(d.usedWord) >> 16)
	if int(idx-d.used) > d.out {
		d.err = ErrUsedJump
		return false
	}
	d.seen = idx
	return d.seen != d.used
}

// release puts a chain's descriptors back to the free list.
func (d *Driver) release(head uint16) {
	last := head
	for range d.slots[head].count - 1 {
		last = d.slots[last].link
	}
	d.nfree += int(d.slots[head].count)
	d.slots[head].count = 0
	d.slots[last].link = d.free
	d.free = head
}

// EnableCalls asks the device for a call when it is done with the next chain, and says whether one is waiting already:
// then there may be no call, and the caller must not sleep. It says so too when the ring is broken.
func (d *Driver) EnableCalls() (more bool) {
	if d.eventIdx {
		store16(d.usedEvent, d.used)
	} else if d.availFlags != 0 {
		d.availFlags = 0
		d.storeAvail()
	}
	d.fence.full() // the wish must be visible before we look again (section 2.7.14.1)
	return d.look() || d.err != nil
}

// DisableCalls tells the device that calls are not needed; it may call all the same. With EVENT_IDX there is nothing to
// do: used.idx passes used_event once and then for 65536 chains not again.
func (d *Driver) DisableCalls() {
	if !d.eventIdx && d.availFlags != noInterrupt {
		d.availFlags = noInterrupt
		d.storeAvail()
	}
}

// storeAvail writes avail.flags and avail.idx, which only the driver writes, as one word.
func (d *Driver) storeAvail() {
	atomic.StoreUint32(d.availWord, uint32(d.availFlags)|uint32(d.published)<<16)
}

// Free is the number of free descriptors. A chain takes one with an indirect table, else one per buffer.
func (d *Driver) Free() int { return d.nfree }

// Outstanding is the number of chains added and not yet popped.
func (d *Driver) Outstanding() int { return d.out }

// Err says why the ring is broken, or nil: [ErrUsedJump], [ErrUsedID] or [ErrUsedLen].
func (d *Driver) Err() error { return d.err }
