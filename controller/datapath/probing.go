package datapath

import (
	"fmt"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// What a worker tells the probes of a VM. While a VM has none, each place that a frame comes by costs a look at port.probes and
// nothing else: the callers look before they call.

// AddProbe lets a probe hear of a VM's frames from the next burst on.
func (w *Worker) AddProbe(index uint32, pr *Probe) error {
	err := w.tell(func() error {
		p := w.port(index)
		if p == nil {
			return fmt.Errorf("port %d: %w", index, ErrNoPort)
		}
		if !pr.given.Load() { // by one who did not wait for this
			pr.epoch = time.Now().UnixNano() - w.clock()
			w.listen(p, pr)
		}
		return nil
	})
	if err != nil {
		pr.given.Store(true)
	}
	return err
}

func (w *Worker) listen(p *port, pr *Probe) {
	p.probes = append(p.probes, pr)
	w.leaveSums(p)
}

// RemoveProbe takes a probe away. One that has ended is no error.
func (w *Worker) RemoveProbe(index uint32, pr *Probe) error {
	pr.given.Store(true)
	return w.do(func() {
		if p := w.port(index); p != nil {
			w.unlisten(p, pr)
		}
	})
}

func (w *Worker) unlisten(p *port, pr *Probe) {
	for i, q := range p.probes {
		if q == pr {
			p.probes = append(p.probes[:i], p.probes[i+1:]...)
			break
		}
	}
	if len(p.probes) == 0 {
		p.probes = nil // which is what the callers look at
	}
	w.leaveSums(p)
}

// endProbes tells the probes that nothing more will come.
func (p *port) endProbes(why ProbeEnd) {
	for _, pr := range p.probes {
		pr.ended.Store(uint32(why))
	}
	p.probes = nil
}

// record stages a record for a probe that hears of such a frame; nil when the probe will not hear of it.
func (w *Worker) record(pr *Probe, deed Deed, why flowtable.Reason, size int, frags ...[]byte) *probeSlot {
	if !pr.cfg.Deeds.has(deed) || pr.given.Load() || !pr.cfg.Flow.hears(frags, size) {
		return nil
	}
	s := pr.stage(size, frags...)
	if s == nil {
		pr.lose(1)
		return nil
	}
	s.Time, s.Deed, s.Reason, s.Packets, s.Segments = w.now+pr.epoch, deed, why, 1, 1
	return s
}

// probeLeft tells of a frame that leaves the flow table.
func (w *Worker) probeLeft(p *port, sf *flowtable.Superframe) {
	deed := Passed
	if sf.Merged {
		deed = Sealed
	}
	if e := &w.entering; e.port == p && sf.Refs[len(sf.Refs)-1] == e.ref {
		e.deed, e.reason = deed, sf.Reason
	}
	for _, pr := range p.probes {
		if pr.cfg.Kind != ProbeFates {
			continue
		}
		if s := w.record(pr, deed, sf.Reason, sf.Len, sf.Frags...); s != nil {
			s.Packets, s.Segments, s.Held = sf.Packets, sf.Segments, sf.Held
			pr.publish()
		}
	}
}

// probeDropped tells of a frame that was given up behind the table.
func (w *Worker) probeDropped(p *port, e *flowtable.Entry, why flowtable.Reason, frags [][]byte) {
	for _, pr := range p.probes {
		if pr.cfg.Kind != ProbeFates {
			continue
		}
		if s := w.record(pr, Dropped, why, e.Len, frags...); s != nil {
			s.Packets, s.Segments = e.Packets, e.Segments
			pr.publish()
		}
	}
}

// probeRefused tells of a packet that was given up before the table saw it, or that the VM was not allowed to send.
func (w *Worker) probeRefused(p *port, why flowtable.Reason, frame []byte, toWire bool) {
	for _, pr := range p.probes {
		if pr.cfg.Kind == ProbeGuest {
			continue
		}
		if s := w.record(pr, Dropped, why, len(frame), frame); s != nil {
			s.ToWire = toWire
			pr.publish()
		}
	}
}

// probeSent tells of a frame of the VM's that goes on, to the wire or to a VM beside it, as so many packets.
func (w *Worker) probeSent(p *port, packets int, frags ...[]byte) {
	size := 0
	for _, b := range frags {
		size += len(b)
	}
	for _, pr := range p.probes {
		if pr.cfg.Kind != ProbeWire {
			continue
		}
		if s := w.record(pr, Sent, 0, size, frags...); s != nil {
			s.ToWire, s.Packets, s.Segments = true, packets, packets
			pr.publish()
		}
	}
}

// probeWhole tells of a superframe that came for the VM as one.
func (w *Worker) probeWhole(p *port, sf *flowtable.Superframe) {
	for _, pr := range p.probes {
		if pr.cfg.Kind != ProbeWire {
			continue
		}
		if s := w.record(pr, Sealed, flowtable.ReasonGSOInput, sf.Len, sf.Frags...); s != nil {
			s.Packets, s.Segments = sf.Packets, sf.Packets
			pr.publish()
		}
	}
}

// entering is the packet that the flow table is being given, for a VM with probes: what Deliver hears of it meanwhile.
type entering struct {
	port   *port // nil: none
	ref    uint64
	deed   Deed
	reason flowtable.Reason
}

// probeEntering tells of a packet that came for the VM, as it came: the table may rewrite it. What becomes of it is said by
// probeEntered.
func (w *Worker) probeEntering(p *port, frame []byte, ref uint64) {
	w.entering = entering{port: p, ref: ref, deed: Held}
	for _, pr := range p.probes {
		if pr.cfg.Kind == ProbeWire {
			w.record(pr, Held, 0, len(frame), frame)
		}
	}
}

// probeEntered ends what probeEntering began.
func (w *Worker) probeEntered(p *port) {
	e := w.entering
	w.entering = entering{}
	for _, pr := range p.probes {
		if pr.cfg.Kind == ProbeWire && pr.shown < pr.head {
			s := pr.slot(pr.shown)
			s.Deed, s.Reason = e.deed, e.reason
			pr.publish()
		}
	}
}

// probePut tells of a frame that a guest's Put has taken: e of a whole one, nil of a piece, which leaves alone for the reason why.
// It is not true until probeSettled.
func (w *Worker) probePut(p *port, e *flowtable.Entry, why flowtable.Reason, f *virtio.Frame) {
	for _, pr := range p.probes {
		if pr.cfg.Kind != ProbeGuest || pr.given.Load() {
			continue
		}
		s := pr.stagePut(f.Len, f.Frags)
		if s == nil {
			continue
		}
		s.Time, s.Deed, s.Hdr = w.now+pr.epoch, Delivered, f.Hdr
		s.Packets, s.Segments, s.Reason = 1, 1, why
		if e != nil {
			s.Packets, s.Segments, s.Reason = e.Packets, e.Segments, e.Reason
		}
	}
}

// probeSettled: of the burst in hand the first n Puts arrived.
func (p *port) probeSettled(n int) {
	for _, pr := range p.probes {
		if pr.cfg.Kind == ProbeGuest {
			pr.settle(n)
		}
	}
}
