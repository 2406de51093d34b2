package datapath

import (
	"errors"

	"github.com/rscctl/rscctl/flowtable"
)

// How a VM is kept to its rates. What it sends stays in its virtqueues while its bucket is empty: nothing is lost, and the guest's
// own queues are where it waits. What comes for it waits in its output queue, bounded by time (Bucket.queue), and the newest beyond
// that is dropped as rate. The worker sleeps until the bucket has tokens, and serves the others meanwhile.

// errPaced ends a burst when the guest has had its rate.
var errPaced = errors.New("the rate is used up")

// heldBack is emitFrame's answer for a frame that has to wait for its VM's rate.
const heldBack = -1

// pacesTx reports whether a frame of a VM that takes so many bytes on the wire has to wait for its rate.
func (w *Worker) pacesTx(p *port, bytes int) bool {
	if p.TxRate == nil || p.TxRate.takes(w.now, bytes) {
		return false
	}
	p.txAt = p.TxRate.ready(w.now)
	p.cnt.TxPaced++
	return true
}

// txPaced reports whether a VM's frames have to wait still.
func (w *Worker) txPaced(p *port) bool {
	if p.txAt > w.now {
		return true
	}
	p.txAt = 0
	return false
}

// pacesRx reports whether a frame for a VM has to wait for its rate. Who hands over does not wait: the bucket ends with the process.
func (w *Worker) pacesRx(p *port, f *outFrame) bool {
	if p.RxRate == nil || f.paid || w.suspended {
		return false
	}
	if !p.RxRate.takes(w.now, wireBytes(f.Len, int(f.Hdr.HdrLen), f.entry.Packets, p.Addr.VLAN != 0)) {
		p.rxAt = p.RxRate.ready(w.now)
		return true
	}
	f.paid = true
	return false
}

// rxPaced reports whether what comes for a VM has to wait still.
func (w *Worker) rxPaced(p *port) bool {
	if p.rxAt > w.now && !w.suspended {
		return true
	}
	p.rxAt = 0
	return false
}

// waitMost is how many chunks may wait for a VM that cannot take them now, and why what is more is dropped.
func (w *Worker) waitMost(p *port) (chunks int, why flowtable.Reason) {
	if p.rxAt != 0 && p.RxRate != nil {
		return min(w.waitLimit(), p.RxRate.queue()), flowtable.ReasonRate
	}
	return w.waitLimit(), flowtable.ReasonGuestNoBuffers
}

// paceLeft is how long, in ns, the worker may sleep for its VMs' rates; negative without a bound. Who waits for something else is
// not looked at before that is there.
func (w *Worker) paceLeft() int64 {
	left, now := int64(-1), int64(0)
	atMost := func(at int64) {
		if now == 0 {
			now = w.clock()
		}
		if d := max(0, at-now); left < 0 || d < left {
			left = d
		}
	}
	for _, p := range w.list {
		if w.resting(p) {
			continue
		}
		if p.txAt != 0 && len(p.sources) > 0 {
			atMost(p.txAt)
		}
		if p.rxAt != 0 && p.out.n > 0 && p.guest != nil {
			atMost(p.rxAt)
		}
	}
	return left
}
