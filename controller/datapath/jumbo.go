package datapath

import (
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/xsk"
)

// Large is where frames lie that no chunk of the NIC holds (an MTU of 9000). Such a frame comes in one piece, in a buffer; its ref is
// freed, cut and delivered like a chunk's. To the wire NIC.Send takes it as well. An *xsk.Socket is one. Only the worker's goroutine calls it.
type Large interface {
	// ChunkRoom is how long a frame may be that NIC.AllocTx has room for.
	ChunkRoom() int
	// AllocLarge is NIC.AllocTx for longer ones; ok is false when none is free.
	AllocLarge() (buf []byte, d xsk.Desc, ok bool)
	// LargeRoom is how many AllocLarge takes now.
	LargeRoom() int
	// Lost are the frames that came and were given up.
	Lost() xsk.Lost
}

// isLarge reports whether a packet of so many bytes, and a tag, needs more than a chunk.
func (w *Worker) isLarge(n int) bool {
	return w.cfg.Large != nil && n+vlanTag > w.cfg.Large.ChunkRoom()
}

// allocFor is AllocTx for a packet of so many bytes, and a tag.
func (w *Worker) allocFor(n int) (buf []byte, d xsk.Desc, ok bool) {
	if w.isLarge(n) {
		return w.cfg.Large.AllocLarge()
	}
	return w.nic.AllocTx()
}

// slotsFor is how many slots of the TX ring a packet of so many bytes, and a tag, takes.
func (w *Worker) slotsFor(n int) int {
	if !w.isLarge(n) {
		return 1
	}
	room := w.cfg.Large.ChunkRoom()
	return (n + vlanTag + room - 1) / room
}

// lacksLarge reports whether there are too few buffers for so many packets of n bytes. Guests have them, so nobody waits behind the frame.
func (w *Worker) lacksLarge(packets, n int) bool {
	return w.isLarge(n) && w.cfg.Large.LargeRoom() < packets
}

// send is NIC.Send. A packet may be several entries of the ring, each of which is completed.
func (w *Worker) send(d xsk.Desc, n int) bool {
	before, entries := 0, 1
	if w.cfg.Large != nil {
		before = w.nic.TxPending()
	}
	if !w.nic.Send(d, n) {
		return false
	}
	if w.cfg.Large != nil {
		entries = w.nic.TxPending() - before
	}
	w.sent += uint64(entries)
	return true
}

// isTorn reports whether a frame is not the one that XDP has described: a piece of it is missing, or another's is in it.
func (w *Worker) isTorn(frame, before []byte) bool {
	return w.cfg.Large != nil && meta.Contradicts(before, len(frame))
}

// mtuOf is the largest packet that a VM sends and gets, in bytes behind the Ethernet header.
func (w *Worker) mtuOf(p *port) int {
	if p.MTU > 0 {
		return min(p.MTU, w.cfg.MTU)
	}
	return w.cfg.MTU
}

// tooLong reports whether a frame for a VM is longer than its own MTU lets it be, with the tag of its VLAN beside that. Where the VM has none of
// its own, what the wire takes is short enough.
func tooLong(p *port, frame []byte, tagged bool) bool {
	if p.MTU == 0 {
		return false
	}
	most := p.MTU + ethHeader
	if tagged {
		most += vlanTag
	}
	return len(frame) > most
}
