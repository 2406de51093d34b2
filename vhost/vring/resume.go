package vring

import (
	"encoding/binary"
	"sync/atomic"
)

// Resumption is how a ring stood when its device took over, in chains.
type Resumption struct {
	Open  int  // posted and not completed: what the driver waits for
	Lost  int  // of them: before the base, so that this device will never complete them
	Moved int  // of them: taken back, by going on at used.idx
	Still bool // all of the ring is lost: the driver can post nothing, so nothing will ever happen
}

// Resume goes on at used.idx instead of the base that the front-end gave where that base leaves chains behind and the ring
// proves that used.idx is right.
//
// A front-end that finds its back-end again knows no base, and has to read one from the ring. QEMU takes used.idx: right
// for a device that completes in order, as this one does. Cloud Hypervisor takes avail.idx (unless IN_ORDER is
// negotiated): then every chain that was open is the device's in the driver's eyes, and nobody's in truth. A guest that
// had posted all its receive buffers posts no more and receives nothing, for ever, in the best of health. DPDK always goes
// on at used.idx.
//
// What proves that the chains open are exactly the avail entries from used.idx to avail.idx, whoever the device before us
// was:
//
//   - there are avail.idx - used.idx open chains, by the driver's own count, and no more than the ring holds;
//   - the device before completed in order: entry for entry, the part of the used ring whose avail entries are still to be
//     seen (those from avail.idx - size on) names the heads of the avail ring. One chain left out, however long ago, would
//     have moved all later used entries by one place, against distinct heads;
//   - the heads from used.idx on are in range and distinct, as open chains are. (If the ring is full of them, no used entry
//     is to be compared, and this alone proves it: all that the driver can have open is there.)
//
// A chain of a transmit ring that the device before had sent and not completed is sent twice then; the alternative is that
// the driver waits for it for ever. A ring that lies harms its own guest.
func (d *splitDevice) Resume() Resumption {
	avail := uint16(atomic.LoadUint32(d.availWord) >> 16)
	r := Resumption{Open: int(avail - d.used), Lost: int(d.next - d.used)}
	if r.Open > d.num || r.Lost > r.Open {
		return Resumption{} // no state of a ring that works: Next will say so
	}
	if r.Lost > 0 && d.inOrder(avail) {
		r.Moved, r.Lost = r.Lost, 0
		d.next, d.avail = d.used, d.used
	}
	r.Still = r.Lost == d.num
	return r
}

func (d *splitDevice) Rejoin(lost int) {
	d.next = d.used + uint16(lost)
	d.avail = d.next
}

// inOrder is the proof that Resume asks for.
func (d *splitDevice) inOrder(avail uint16) bool {
	head := func(p uint16) uint16 { return binary.LittleEndian.Uint16(d.availRing[2*int(p&d.mask):]) }
	for p := avail - uint16(d.num); p != d.used; p++ {
		if id := binary.LittleEndian.Uint32(d.usedRing[usedElem*int(p&d.mask):]); id != uint32(head(p)) {
			return false
		}
	}
	seen := make([]bool, d.num)
	for p := d.used; p != avail; p++ {
		h := int(head(p))
		if h >= d.num || seen[h] {
			return false
		}
		seen[h] = true
	}
	return true
}
