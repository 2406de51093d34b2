package datapath

import (
	"errors"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/vhost/virtio"
)

var (
	// errTurn ends a burst when the guest has used up its part of the turn.
	errTurn = errors.New("the turn is over")
	// errLent ends a burst at a frame that is to be cut, and lies in memory that may vanish while that is done.
	errLent = errors.New("the frame is lent")
)

// Deliver implements flowtable.Output: it queues the frame for its guest; flush moves it there at the end of the burst.
func (w *Worker) Deliver(sf *flowtable.Superframe) {
	p := w.port(sf.Port)
	if p == nil {
		w.nic.FreeAll(sf.Refs)
		return
	}
	if p.probes != nil {
		w.probeLeft(p, sf)
	}
	q := p.out
	if q.full() && !p.waiting { // a burst of many small frames: make room now
		w.flushPort(p)
	}
	if q.full() && p.waiting {
		w.lengthen(p)
	}
	if most, why := w.waitMost(p); q.full() || (p.waiting && q.chunks+len(sf.Refs) > most) {
		w.giveUp(p, &sf.Entry, why, sf.Frags)
		w.nic.FreeAll(sf.Refs)
		return
	}
	f := q.push(sf, sf == &w.staging.sf)
	f.seq = w.sequenceOf(p, sf.GSOType, &f.entry, f.Frags)
	w.touch(p)
}

// touch puts a port on the list of those that flush and reap turn to.
func (w *Worker) touch(p *port) {
	if !p.dirty {
		p.dirty = true
		w.dirty = append(w.dirty, p)
	}
}

// flush moves the output queues into the guests, one guest at a time.
func (w *Worker) flush() {
	keep := w.dirty[:0]
	for _, p := range w.dirty {
		if p.out.n > 0 {
			w.flushPort(p)
		}
		if p.dirty = p.out.n > 0 || p.held > 0; p.dirty {
			keep = append(keep, p)
		}
	}
	w.dirty = keep
}

// reap takes back the chunks that guests are done with.
func (w *Worker) reap() {
	for _, p := range w.dirty {
		if p.held > 0 {
			p.held = p.guest.Reap()
		}
	}
	w.countLent()
}

// flushPort is the one way into a guest: it moves the output queue there, burst by burst, until the queue is empty or the
// guest has no room.
func (w *Worker) flushPort(p *port) {
	if p.paused || w.resting(p) || w.rxPaced(p) || (p.hungry && p.asked == w.turn) {
		w.bound(p, p.hungry)
		return
	}
	p.asked = w.turn
	w.fill(p)
	from := w.touching()
	full, over := false, false
	for p.out.n > 0 && !full && !over {
		if p.guest == nil || p.err != nil || !p.guest.Begin(w.ringRoom(p)) {
			w.dropQueued(p, flowtable.ReasonPortDown)
			break
		}
		why := w.putBurst(p, from)
		n, err := p.guest.Commit()
		w.settleBurst(p, n)
		if why == nil || err != nil { // what ended the burst came first
			why = err
		}
		switch why {
		case nil, ErrBurst:
		case ErrFull:
			full = true
		case errTurn:
			over, w.owed = true, true
		case ErrDamaged:
			w.mend(p)
		case errPaced, errLent, ErrSource: // emitWhole knows what to do with a frame that is lent
			over = true
		case ErrTooBig, ErrNoOffer, ErrRefused:
			w.dropFront(p, flowtable.ReasonBadLength)
		case ErrLinkDown:
			w.dropFront(p, flowtable.ReasonPortDown)
		default: // the guest is finished, and the control side learns why
			p.err = why
			w.activity.Add(1) // who looks at what has moved looks here
			w.cfg.Trouble()   // XDP still sends the VM's frames here
		}
	}
	if p.guest != nil {
		w.keeps(p, p.guest.Reap())
		w.table.LimitFrame(p.Index, p.guest.MaxFrame())
	}
	w.touched(p, from)
	w.bound(p, full)
}

// putBurst hands frames to the guest until it refuses one, and returns why it did. from is what touching returned.
func (w *Worker) putBurst(p *port, from touch) error {
	for i := range p.out.n {
		if p.credit.walk <= 0 || i > 0 && w.long(from) {
			return errTurn
		}
		if w.pacesRx(p, p.out.at(i)) {
			return errPaced
		}
		err := w.put(p, p.out.at(i))
		p.credit.walk -= p.guest.Walked()
		if err != nil {
			return err
		}
	}
	return nil
}

// settleBurst books the first n Puts of a burst as delivered; what was put beyond them is the queue's again.
func (w *Worker) settleBurst(p *port, n int) {
	if p.probes != nil {
		p.probeSettled(n)
	}
	for p.out.n > 0 {
		f := p.out.front()
		took := min(n, f.puts)
		n -= took
		if f.cut {
			f.done += took
		}
		whole := f.all && took == f.puts
		if !whole {
			break
		}
		p.delivered(f)
		if f.cut { // its pieces were copies
			w.nic.FreeAll(f.Refs)
		} else {
			w.watch(p, f)
		}
		p.out.pop()
	}
	for i := range p.out.n {
		f := p.out.at(i)
		if f.puts == 0 && !f.all {
			break
		}
		f.puts, f.all = 0, false
	}
}

// put hands one frame over, whole if the guest takes it so. A superframe that does not fit the guest's buffers (no MRG_RXBUF),
// or that the guest no longer takes, is cut again and handed over packet by packet.
func (w *Worker) put(p *port, f *outFrame) error {
	if g := p.guest; !f.cut {
		err := g.Put(&f.Frame)
		if err == ErrNoOffer && f.Hdr.GSOType == 0 && f.Hdr.Flags != 0 { // no GUEST_CSUM any more: no claim then
			f.unclaim()
			err = g.Put(&f.Frame)
		}
		if err == nil {
			f.puts, f.all = 1, true
			if p.probes != nil {
				w.probePut(p, &f.entry, 0, &f.Frame.Frame)
			}
		}
		if f.Hdr.GSOType == 0 || (err != ErrTooBig && err != ErrNoOffer) {
			return err
		}
		if f.lent {
			return errLent
		}
		if !f.verify() { // the pieces would get sums of their own
			return ErrDamaged
		}
		f.cut, f.why = true, flowtable.ReasonMaxBytes
		if err == ErrNoOffer {
			f.why = flowtable.ReasonNotNegotiated
		}
	}
	return w.putPieces(p, f)
}

// unclaim takes back what the header says of a single packet's checksum, which is completed where it was left to the guest.
func (f *outFrame) unclaim() {
	h := &f.Hdr
	if h.Flags&virtio.HdrNeedsCsum != 0 { // it is in one piece: flowtable.Packet
		_ = checksum.Complete(f.Frags[0], int(h.CsumStart), int(h.CsumOffset))
	}
	h.Flags, h.CsumStart, h.CsumOffset = 0, 0, 0
}

// putPieces hands over what is left of a superframe, cut into the packets it was made of. Each is charged by itself: there may be
// hundreds.
func (w *Worker) putPieces(p *port, f *outFrame) error {
	gso := flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize, FixedID: f.fixed}
	if err := w.cutter.Init(f.Frags, gso); err != nil {
		return ErrRefused
	}
	for i := 0; ; i++ {
		n, ok, err := w.cutter.Next(w.scratch)
		if err != nil {
			return ErrRefused
		}
		if !ok {
			f.all = true
			return nil
		}
		if i < f.done {
			continue
		}
		if p.credit.walk -= p.guest.Walked(); p.credit.walk <= 0 {
			return errTurn
		}
		w.pieces[0] = w.scratch[:n]
		w.piece.Frags, w.piece.Len = w.pieces, n
		if err := p.guest.Put(&w.piece); err != nil {
			return err
		}
		f.puts++
		if p.probes != nil {
			w.probePut(p, nil, f.why, &w.piece.Frame)
		}
	}
}

// bound keeps what waits for a guest within its limit: the newest leave first. A guest for which nothing is left is tried again
// with the next frame. full: the guest has no room.
func (w *Worker) bound(p *port, full bool) {
	w.setWaiting(p, p.out.n > 0)
	if p.waiting {
		most, why := w.waitMost(p)
		w.cutTo(p, most, why)
	}
	w.setWaiting(p, p.out.n > 0)
	p.hungry = full && p.out.n > 0
}

// cutTo drops the newest of what waits for a guest until it is no more than so many chunks.
func (w *Worker) cutTo(p *port, chunks int, why flowtable.Reason) {
	for p.out.n > 0 && p.out.chunks > chunks {
		f := p.out.popNewest()
		w.drop(p, f, why)
		w.nic.FreeAll(f.Refs)
	}
}

func (w *Worker) setWaiting(p *port, waiting bool) {
	if waiting == p.waiting {
		return
	}
	p.waiting = waiting
	if waiting {
		w.waiting++
	} else {
		w.waiting--
		w.shorten(p.out)
	}
}

func (w *Worker) dropFront(p *port, why flowtable.Reason) {
	f := p.out.pop()
	w.drop(p, f, why)
	w.nic.FreeAll(f.Refs)
}

// dropQueued gives up all that waits for a guest.
func (w *Worker) dropQueued(p *port, why flowtable.Reason) {
	for p.out.n > 0 {
		w.dropFront(p, why)
	}
	w.setWaiting(p, false)
	p.hungry = false
}
