package vring

import (
	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Device is the device side of a ring. It is not safe for concurrent use.
type Device struct {
	err error
}

// Mark is a place in the ring that [Device.Rewind] goes back to.
type Mark struct{ next, used uint16 }

// NewDevice makes the device side. base is the index of the first avail entry to take (VHOST_USER_SET_VRING_BASE);
// the used index is read from the ring. INDIRECT_DESC and EVENT_IDX of f matter.
func NewDevice(mem *guestmem.Table, l Layout, f virtio.Features, base uint16) (*Device, error) {
	return nil, nil
}

// Next takes the next available chain. ok is false when there is none. An error is sticky: it wraps ErrBadIndex, ErrBadChain or ErrOutOfRegion.
func (d *Device) Next(c *Chain) (ok bool, err error) { return false, nil }

// Mark notes how far chains were taken and pushed.
func (d *Device) Mark() Mark { return Mark{} }

// Rewind gives back every chain taken since the mark and forgets every Push since it, unless published in between.
func (d *Device) Rewind(m Mark) {}

// Push notes that a chain is done with written bytes in its writable part. The driver sees it after Publish.
func (d *Device) Push(head uint16, written uint32) {}

// Publish makes everything pushed visible by one store and says whether the driver wants a call.
func (d *Device) Publish() (call bool) { return false }

// EnableNotify asks the driver for a kick and says whether chains became available meanwhile (then do not sleep).
func (d *Device) EnableNotify() (more bool) { return false }

// DisableNotify tells the driver that kicks are not needed. Advice only.
func (d *Device) DisableNotify() {}

// Pending is how many chains are available, looking at the ring.
func (d *Device) Pending() int { return 0 }

// Base is the index of the next avail entry to take (the answer to VHOST_USER_GET_VRING_BASE).
func (d *Device) Base() uint16 { return 0 }

// UsedIndex is the published used index.
func (d *Device) UsedIndex() uint16 { return 0 }

// SetMemory swaps table and ring memory, after the front-end changed its memory; indexes stay.
func (d *Device) SetMemory(mem *guestmem.Table, l Layout) error { return nil }

// Fail breaks the ring from outside (a chain of the wrong direction, say): Next returns err from now on.
func (d *Device) Fail(err error) {}

// Err is the sticky error.
func (d *Device) Err() error { return nil }
