package vring

import "github.com/rscctl/rscctl/vhost/virtio"

// Buffer is one piece of a chain that a driver posts: Addr is a guest physical address.
type Buffer struct {
	Addr     uint64
	Len      uint32
	Writable bool // by the device
}

// IndirectArea is memory for indirect tables. The zero value means chains are posted descriptor by descriptor.
type IndirectArea struct {
	Mem     []byte // at least 16*Entries bytes for each descriptor of the ring (IndirectBytes)
	GPA     uint64 // of Mem
	Entries int    // longest chain
}

// IndirectBytes is the memory an IndirectArea needs.
func IndirectBytes(num, entries int) int { return 16 * num * entries }

// Driver is the driver side of a ring. It is not safe for concurrent use.
type Driver struct{ err error }

// NewDriver makes the driver side of a fresh ring: it clears the indexes. INDIRECT_DESC (with an area) and EVENT_IDX of f matter.
func NewDriver(l Layout, f virtio.Features, area IndirectArea) (*Driver, error) { return nil, nil }

// Add posts a chain, readable buffers first; the device sees it after Publish. token comes back from Used.
// Errors: ErrRingFull, ErrNoBuffers.
func (d *Driver) Add(bufs []Buffer, token uint64) error { return nil }

// Publish makes everything added visible by one store and says whether the device wants a kick.
func (d *Driver) Publish() (kick bool) { return false }

// Used pops the next chain that the device is done with: its token and the bytes written. ok is false when there is none or the ring is broken (Err).
func (d *Driver) Used() (token uint64, n uint32, ok bool) { return 0, 0, false }

// EnableCalls asks the device for a call and says whether used chains are waiting already (then do not sleep).
func (d *Driver) EnableCalls() (more bool) { return false }

// DisableCalls tells the device that calls are not needed. Advice only.
func (d *Driver) DisableCalls() {}

// Free is the number of free descriptors. A chain takes one with an indirect area, else one per buffer.
func (d *Driver) Free() int { return 0 }

// Err says why the ring is broken: the device returned what it does not have.
func (d *Driver) Err() error { return d.err }
