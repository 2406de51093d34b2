// Package vring implements split virtqueues (virtio 1.2, section 2.7), the device side and the driver side,
// without knowing what the buffers mean.
//
// A ring is three pieces of memory shared with the other side:
//
//	descriptors   16 bytes each: address, length, flags, next      written by the driver
//	avail         flags, idx, heads of chains, used_event          written by the driver
//	used          flags, idx, {head, bytes written}, avail_event   written by the device
//
// The driver puts the head of a descriptor chain into avail and moves avail.idx ("available"); the device puts it into
// used and moves used.idx. Indexes run freely modulo 65536. A kick tells the device, a call tells the driver.
//
// The memory is passed in as slices: mapped guest memory in production, Go heap in tests, so that the race detector can
// see both sides (accesses to mapped memory give it no happens-before). The words of one side that the other polls are
// accessed with sync/atomic; which order each step needs is said where it is relied on.
//
// The other side is not trusted. [Device] reads each descriptor once into locals, copies an indirect table before it
// reads it, and answers everything that section 2.7 forbids with a sticky error of its own; nothing in guest memory
// can make it panic, loop, allocate or touch bytes outside of the guest's regions. One thing can: memory whose file
// was cut short raises a fault in any call. The package does not recover it; the caller does, and throws the ring away.
package vring
