package datapath

import "github.com/rscctl/rscctl/flowtable"

// PortCounters are one worker's counts of one VM beside its flowtable.Ledger.
type PortCounters struct {
	Local      uint64 // of the packets that came in: from another VM of the interface
	Late       uint64 // of the packets that came in: while steering was off, or they waited for a worker that hung, so the kernel's path may have overtaken them
	Unsent     uint64 // of the frames delivered: taken by the guest's feed, which was closed before it sent them
	Recut      uint64 // superframes that the guest did not take whole: they were cut again
	TxFrames   uint64 // taken from the guest
	TxBytes    uint64
	TxWire     uint64 // packets that became of them
	TxKernel   uint64 // of TxFrames: those that left by Wire
	TxWhole    uint64 // of TxFrames: superframes that a VM beside it got, or was to get, as they were
	ToHost     uint64 // of TxWire: for the host or somebody behind it alone
	FromHost   uint64 // of the packets that came in: from there
	TxDropped  [flowtable.NumReasons]uint64
	FrameSizes [len(SizeBounds) + 1]uint64 // of TCP frames delivered
	SizeSum    uint64                      // their bytes
	StalledNS  uint64                      // that the worker slept because of the VM's memory
	Rests      uint64                      // times that the VM had to rest for it
	TxPaced    uint64                      // times that what it sends began to wait for its rate
	Refusals   uint64                      // times that the guest was found to drop superframes
}

// Add adds another worker's counts of the same VM.
func (c *PortCounters) Add(o *PortCounters) {
	c.Local += o.Local
	c.ToHost += o.ToHost
	c.FromHost += o.FromHost
	c.Late += o.Late
	c.Unsent += o.Unsent
	c.Recut += o.Recut
	c.TxFrames += o.TxFrames
	c.TxBytes += o.TxBytes
	c.TxWire += o.TxWire
	c.TxKernel += o.TxKernel
	c.TxWhole += o.TxWhole
	for i, n := range o.TxDropped {
		c.TxDropped[i] += n
	}
	for i, n := range o.FrameSizes {
		c.FrameSizes[i] += n
	}
	c.SizeSum += o.SizeSum
	c.StalledNS += o.StalledNS
	c.Rests += o.Rests
	c.Refusals += o.Refusals
	c.TxPaced += o.TxPaced
}

// SizeBounds are the upper bounds of PortCounters.FrameSizes in bytes, Ethernet first; the last bucket has none.
var SizeBounds = [...]uint64{128, 1514, 4096, 8192, 16384, 32768, 49152, 65549}

// delivered books a frame that has reached its guest: as the superframe that it is, or packet by packet when it was cut again.
func (p *port) delivered(f *outFrame) {
	if f.cut {
		p.deliveredPieces(f, f.entry.Packets)
		return
	}
	p.ledger.Deliver(&f.entry)
	if f.entry.TCP {
		p.cnt.FrameSizes[sizeBucket(f.entry.Len)]++
		p.cnt.SizeSum += uint64(f.entry.Len)
	}
}

// drop books a frame that is given up. Pieces of it that the guest has already are not dropped.
func (w *Worker) drop(p *port, f *outFrame, why flowtable.Reason) {
	if f.done == 0 {
		w.giveUp(p, &f.entry, why, f.Frags)
		return
	}
	p.deliveredPieces(f, f.done)
	rest := f.entry
	rest.Packets -= f.done
	w.giveUp(p, &rest, why, f.Frags)
}

// giveUp books a frame that the table gave out and no guest gets.
func (w *Worker) giveUp(p *port, e *flowtable.Entry, why flowtable.Reason, frags [][]byte) {
	p.ledger.Drop(e, why)
	if p.probes != nil {
		w.probeDropped(p, e, why, frags)
	}
}

// refuse books a packet that is dropped in front of the table.
func (w *Worker) refuse(p *port, why flowtable.Reason, frame []byte) {
	p.ledger.Refuse(why, len(frame))
	if p.probes != nil {
		w.probeRefused(p, why, frame, false)
	}
}

// refuseTx books a packet of the guest's that goes nowhere.
func (w *Worker) refuseTx(p *port, why flowtable.Reason, frame []byte) {
	p.cnt.TxDropped[why]++
	if p.probes != nil {
		w.probeRefused(p, why, frame, true)
	}
}

// deliveredPieces books packets of a superframe that reached the guest one by one: they were passed. Window updates that were
// absorbed live on in the pieces, so they count with the whole frame, and with none of its pieces.
func (p *port) deliveredPieces(f *outFrame, packets int) {
	hdr, payload := int(f.Hdr.HdrLen), min(f.done*int(f.Hdr.GSOSize), f.Len-int(f.Hdr.HdrLen))
	bytes := f.done*hdr + payload
	p.cnt.Recut++
	p.ledger.Passed[f.why] += uint64(packets)
	p.ledger.Frames += uint64(f.done)
	p.ledger.FrameBytes += uint64(bytes)
	p.cnt.FrameSizes[sizeBucket(bytes/f.done)] += uint64(f.done)
	p.cnt.SizeSum += uint64(bytes)
}

func sizeBucket(n int) int {
	i := 0
	for i < len(SizeBounds) && uint64(n) > SizeBounds[i] {
		i++
	}
	return i
}
