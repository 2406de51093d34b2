package datapath

import (
	"math"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
)

// A guest whose Put sums up what it copies gets segments that were merged by their headers (flowtable.Superframe.Sums). When one proves
// damaged, nothing of its superframe has been shown. Then the packets, which are in their chunks as they came, go through a table once
// more that verifies before it merges: what comes out is what the guest would have got, the wrong one alone and without a claim. It is
// rare, so it may cost a second pass.

// mender is that table, with one port.
type mender struct {
	table *flowtable.Table
	parts *parts
	pkt   flowtable.Packet
}

// parts are the frames that became of one, in order.
type parts struct {
	list []outFrame // its entries keep their slices
	n    int
}

// Deliver implements flowtable.Output.
func (p *parts) Deliver(sf *flowtable.Superframe) {
	if p.n == len(p.list) {
		p.list = append(p.list, outFrame{})
	}
	p.list[p.n].fill(sf)
	p.n++
}

func (m *mender) init(chunks int) (err error) {
	m.parts = &parts{}
	// One flow has one open slot. No superframe of the worker's table has more chunks than these.
	m.table, err = flowtable.New(flowtable.Config{Slots: 1, MaxHeld: chunks + 1, Ports: 1}, m.parts)
	return err
}

// leaveSums lets the table merge a VM's segments by their headers, where its guest verifies the payloads. Who listens is told what
// becomes of each packet as it comes, so then the table verifies; what it holds at that moment may still prove damaged later.
func (w *Worker) leaveSums(p *port) {
	_, sums := p.guest.(Summer)
	w.table.LeaveSums(p.Index, sums && p.probes == nil)
}

// verify checks what of a frame is left to be checked, and reports whether it is right.
func (f *outFrame) verify() bool {
	for i, sum := range f.Sums {
		if sum != 0 && checksum.Sum(f.Frags[i+1], uint32(sum)) != 0xffff {
			return false
		}
	}
	f.Sums = f.Sums[:0]
	return true
}

// mend puts what the frame at the front of a queue should have been in its place: the guest has found it damaged. Nothing else of a burst
// may be in the guest's hand.
func (w *Worker) mend(p *port) {
	f := p.out.front()
	p.ledger.TakeBack(&f.entry, int(f.Hdr.HdrLen))
	if !f.entry.Merged {
		p.out.relabel(f)
		return
	}
	m := &w.mender
	m.parts.n = 0
	rules := p.rules // by which it was merged, or newer ones: they only group
	rules.Coalesce, rules.IPv4, rules.IPv6, rules.GuestCsum, rules.TSO4, rules.TSO6 = true, true, true, true, true, true
	rules.Hold, rules.ExcludePorts = math.MaxInt64/4, nil
	l := m.table.Ledger(0)
	l.Reset()
	if err := m.table.SetPort(0, rules, w.now); err != nil { // these rules were good enough for the other table
		w.log.Warn("damaged superframe", "err", err)
	}
	p.out.pop()
	hdr := uint32(f.Hdr.HdrLen)
	for i, ref := range f.Refs {
		m.add(w.asItCame(ref, hdr+uint32(cap(f.Frags[i+1]))), ref, w.now)
	}
	m.table.Close(f.entry.Reason, w.now)
	p.ledger.Decided.Add(&l.Decided)
	mended := m.parts.list[:m.parts.n]
	for i := range mended {
		mended[i].seq = w.sequenceOf(p, mended[i].Hdr.GSOType, &mended[i].entry, mended[i].Frags)
	}
	p.out.pushFront(mended)
}

// add gives the table a packet once more.
func (m *mender) add(frame []byte, ref uint64, now int64) {
	m.pkt.Data, m.pkt.Ref = frame, ref
	packet.Parse(frame, &m.pkt.Info)
	m.table.Add(&m.pkt, now)
}

// asItCame is the frame of n bytes that was given to the table with ref, which is where it begins.
func (w *Worker) asItCame(ref uint64, n uint32) []byte {
	frame, _ := w.nic.Received(xsk.Desc{Addr: ref, Len: n})
	return frame
}

// relabel makes a single packet in the queue one with a wrong checksum.
func (q *outQueue) relabel(f *outFrame) {
	f.Sums, f.Hdr.Flags, f.entry.Reason = f.Sums[:0], 0, flowtable.ReasonBadTCPChecksum
	q.ledger.Decided.Frames[flowtable.ReasonBadTCPChecksum]++
}
