package controller

import (
	"errors"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// workerPort is one VM as one worker sees it. It belongs to the worker's goroutine.
type workerPort struct {
	idx        uint32
	addr       portAddr
	allowSpoof bool
	running    bool           // the guest's rings run
	blocked    bool           // the guest has no buffers: what waits in out is bounded
	rx         *vhost.RxQueue // of a vhost-user guest
	tap        *tapFeed       // of a VM on its own tap
	out        *outQueue
	pollAt     int  // place of the RX kick, or of the feed's call, in the poll set
	late       bool // steering is off: what still comes was on its way when it was switched

	cnt portCounters
}

// portCounters are one worker's share of a VM's counters beside its ledger.
type portCounters struct {
	localFrames       uint64
	late              uint64 // packets that came while steering was off: the kernel path may have overtaken them
	unsent            uint64 // frames posted to vhost-net that it did not send before the feed was closed
	txFrames, txBytes uint64
	txWire            uint64
	txDropped         [flowtable.NumReasons]uint64
	sizes             [len(sizeBounds) + 1]uint64
}

// sizeBounds are the upper bounds of the histogram of delivered TCP frame sizes, in bytes from Ethernet on.
var sizeBounds = [...]uint64{128, 1514, 4096, 8192, 16384, 32768, 49152, 65549}

// Deliver implements flowtable.Output: it queues the frame for the guest; flush moves it there at the end of the burst.
func (w *worker) Deliver(sf *flowtable.Superframe) {
	p := w.ports[sf.Port]
	if p == nil {
		w.freeAll(sf.Refs)
		return
	}
	q := p.out
	if q.full() || (p.blocked && q.chunks+len(sf.Refs) > w.blockedLimit()) {
		if q.full() && !p.blocked { // a burst of many small frames: make room now
			w.flushPort(p)
		}
		if q.full() || p.blocked {
			p.out.ledger.Drop(&sf.Entry, flowtable.ReasonGuestNoBuffers)
			w.freeAll(sf.Refs)
			return
		}
	}
	q.push(sf)
}

func (w *worker) freeAll(refs []uint64) {
	for _, r := range refs {
		w.xs.Free(r)
	}
}

// blockedLimit bounds the chunks that wait for one guest without buffers: its share of a quarter of the UMEM, so that
// guests that stop reading cannot starve the others of the same NIC queue.
func (w *worker) blockedLimit() int { return max(minBlockedChunks, maxBlockedChunks/max(1, w.blocked)) }

// flush moves the output queues into the guests, one virtqueue at a time.
func (w *worker) flush() {
	for _, p := range w.list {
		if p.out.n > 0 {
			w.flushPort(p)
		}
	}
}

func (w *worker) flushPort(p *workerPort) {
	if p.tap != nil {
		w.flushTap(p)
		return
	}
	if p.rx == nil || !p.rx.Begin() {
		w.dropQueued(p, flowtable.ReasonPortDown)
		w.setBlocked(p, false)
		return
	}
	short := false
	for p.out.n > 0 && !short {
		f := p.out.front()
		switch err := w.put(p, f); {
		case err == nil:
			p.countDelivered(f)
			w.freeAll(f.refs)
			p.out.popFront()
		case errors.Is(err, vhost.ErrNoBuffers):
			// Ask for a kick, and look again: buffers posted since then must not wait for it.
			short = !p.rx.ArmKick()
		case errors.Is(err, vhost.ErrTooBig):
			w.dropFront(p, flowtable.ReasonBadLength)
		default: // the port failed; vhost has the reason
			p.rx.Commit()
			w.dropQueued(p, flowtable.ReasonPortDown)
			w.setBlocked(p, false)
			return
		}
	}
	p.rx.Commit()
	w.table.LimitFrame(p.idx, p.rx.MaxFrame()) // what the buffers seen hold within the guest's fragment budget
	w.settle(p, short)
}

// settle bounds what waits for a guest that takes no more, the newest first.
func (w *worker) settle(p *workerPort, short bool) {
	w.setBlocked(p, short)
	for short && p.out.n > 1 && p.out.chunks > w.blockedLimit() {
		f := p.out.popBack()
		p.out.ledger.Drop(&f.entry, flowtable.ReasonGuestNoBuffers)
		w.freeAll(f.refs)
	}
}

func (w *worker) setBlocked(p *workerPort, b bool) {
	if b != p.blocked {
		p.blocked = b
		if b {
			w.blocked++
		} else {
			w.blocked--
		}
	}
}

// put delivers one frame, whole if the guest can take it so. A superframe that does not fit the guest's buffers (no
// MRG_RXBUF) or that the guest no longer takes is cut again and delivered packet by packet; f.cut remembers how far
// that came when the buffers run out.
func (w *worker) put(p *workerPort, f *outFrame) error {
	if f.cut == 0 {
		err := p.rx.Put(&f.frame)
		recut := errors.Is(err, vhost.ErrTooBig) || errors.Is(err, vhost.ErrNotNegotiated)
		if err == nil || !recut {
			return err
		}
		if f.frame.Hdr.GSOType == 0 {
			if errors.Is(err, vhost.ErrNotNegotiated) && f.frame.Hdr.Flags != 0 { // no GUEST_CSUM any more: no claim then
				f.frame.Hdr.Flags = 0
				return p.rx.Put(&f.frame)
			}
			return err
		}
	}
	if err := w.seg.Init(f.frame.Frags, flowtable.GSO{Type: f.frame.Hdr.GSOType, Size: f.frame.Hdr.GSOSize, FixedID: f.fixed}); err != nil {
		return vhost.ErrTooBig
	}
	var piece virtio.Frame
	var frags [1][]byte
	for i := 0; ; i++ {
		n, ok, err := w.seg.Next(w.scratch)
		if err != nil {
			return vhost.ErrTooBig
		}
		if !ok {
			return nil
		}
		if i < f.cut {
			continue
		}
		frags[0] = w.scratch[:n]
		piece.Frags, piece.Len = frags[:], n
		if err := p.rx.Put(&piece); err != nil {
			return err
		}
		f.cut = i + 1
	}
}

func (p *workerPort) countDelivered(f *outFrame) {
	p.out.ledger.Deliver(&f.entry)
	if f.entry.TCP {
		i := 0
		for i < len(sizeBounds) && uint64(f.frame.Len) > sizeBounds[i] {
			i++
		}
		p.cnt.sizes[i]++
	}
}

func (w *worker) dropFront(p *workerPort, why flowtable.Reason) {
	f := p.out.front()
	p.out.ledger.Drop(&f.entry, why)
	w.freeAll(f.refs)
	p.out.popFront()
}

// dropQueued gives up all that waits for a port.
func (w *worker) dropQueued(p *workerPort, why flowtable.Reason) {
	for p.out.n > 0 {
		w.dropFront(p, why)
	}
}
