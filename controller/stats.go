package controller

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/flowtable"
)

// vmSnapshot is one worker's counters of one VM at a burst boundary.
type vmSnapshot struct {
	ledger flowtable.Ledger
	cnt    portCounters
}

// snapshot runs on a worker.
func (w *worker) snapshot(idx uint32) (s vmSnapshot, ok bool) {
	p := w.ports[idx]
	if p == nil {
		return s, false
	}
	s.ledger = *w.table.Ledger(idx)
	s.cnt = p.cnt
	return s, true
}

// Stats returns every counter of one VM, or with vm empty of all.
func (c *Controller) Stats(vm string) (api.Stats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := api.Stats{Schema: api.Schema, VMs: []api.VMStats{}, Queues: map[string]api.Queue{}, Verdicts: map[string]uint64{}}
	for _, name := range slices.Sorted(maps.Keys(c.uplinks)) {
		u := c.uplinks[name]
		for _, v := range u.sortedPorts() {
			if vm != "" && vm != v.req.VM {
				continue
			}
			s, err := u.vmStats(v)
			if err != nil {
				return out, err
			}
			out.VMs = append(out.VMs, s)
		}
		qs, err := u.queues()
		if err != nil {
			return out, err
		}
		for _, q := range qs {
			out.Queues[name+"/"+strconv.Itoa(q.ID)] = q
		}
		verdicts, err := u.prog.Verdicts()
		if err != nil {
			return out, fmt.Errorf("interface %s: verdicts: %w", name, err)
		}
		for k, n := range verdicts {
			out.Verdicts[k] += n
		}
	}
	if vm != "" && len(out.VMs) == 0 {
		return out, fmt.Errorf("stats: VM %s: %w: 'rscctl status' lists what is", vm, ErrUnknownVM)
	}
	return out, nil
}

func (u *uplink) sortedPorts() []*vmPort {
	out := make([]*vmPort, 0, len(u.ports))
	for _, name := range slices.Sorted(maps.Keys(u.ports)) {
		out = append(out, u.ports[name])
	}
	return out
}

// vmStats sums a VM's counters over the workers.
func (u *uplink) vmStats(v *vmPort) (api.VMStats, error) {
	s := api.VMStats{VM: v.req.VM, Iface: u.name, Passed: map[string]uint64{}, Sealed: map[string]uint64{}, Dropped: map[string]uint64{}, TxDropped: map[string]uint64{},
		QEMU: map[string]uint64{}, Virtio: map[string]uint64{}}
	var sizes [len(sizeBounds) + 1]uint64
	var l flowtable.Ledger
	err := u.each(func(w *worker) {
		x, ok := w.snapshot(v.idx)
		if !ok {
			return
		}
		l.Add(&x.ledger)
		n := &x.cnt
		s.TxFrames += n.txFrames
		s.TxBytes += n.txBytes
		s.TxWireFrames += n.txWire
		s.LocalFrames += n.localFrames
		s.LatePackets += n.late
		s.FeedUnsent += n.unsent
		for r := range flowtable.NumReasons {
			name := flowtable.Reason(r).String()
			addCount(s.TxDropped, name, n.txDropped[r])
		}
		for i, n := range n.sizes {
			sizes[i] += n
		}
	})
	if err != nil {
		return s, fmt.Errorf("stats: VM %s: %w", v.req.VM, err)
	}
	s.RxPackets, s.RxBytes = l.In+l.Refused, l.InBytes+l.RefusedBytes
	s.Superframes, s.MergedPackets = l.Superframes, l.Merged
	s.GuestFrames, s.GuestBytes = l.Frames, l.FrameBytes
	s.Held = l.Held + l.Queued
	for r := range flowtable.NumReasons {
		name := flowtable.Reason(r).String()
		addCount(s.Passed, name, l.Passed[r])
		addCount(s.Sealed, name, l.Sealed[r])
		addCount(s.Dropped, name, l.Dropped[r])
	}
	for _, c := range l.QEMU() {
		s.QEMU[c.Name] = c.Value
	}
	for _, c := range l.Virtio() {
		s.Virtio[c.Name] = c.Value
	}
	s.FrameBytes = buckets(sizeBounds[:], sizes[:])
	s.HoldNS = buckets(flowtable.HoldBounds[:], l.HoldHist[:])
	if v.tap != nil {
		if f, err := netdev.InspectTap(v.tap.facts.Name); err == nil {
			s.TapDropped = f.TxDropped - v.tap.dropped
		}
		return s, nil
	}
	q := v.port.Counters()
	s.Interrupts = q.Calls
	for k, n := range q.TxDropped {
		addCount(s.TxDropped, k, n)
	}
	return s, nil
}

func addCount(m map[string]uint64, name string, n uint64) {
	if n > 0 {
		m[name] += n
	}
}

// buckets pairs upper bounds with counts; the count beyond the last bound has no bound (0).
func buckets(bounds, counts []uint64) []api.Bucket {
	out := make([]api.Bucket, 0, len(counts))
	for i, n := range counts {
		b := api.Bucket{Count: n}
		if i < len(bounds) {
			b.Le = bounds[i]
		}
		out = append(out, b)
	}
	return out
}

// queues reports the NIC queues, with AF_XDP's own drop counters beside ours.
func (u *uplink) queues() ([]api.Queue, error) {
	out := make([]api.Queue, 0, len(u.workers))
	for _, w := range u.workers {
		q := api.Queue{ID: w.id, Chunks: chunkCount, ChunkSize: u.chunk}
		var serr error
		err := w.do(func() {
			q.RxFrames, q.TxFrames, q.TxRingFull = w.cnt.rxFrames, w.cnt.txFrames, w.cnt.txRingFull
			q.Held, q.OpenSlots = w.table.Held(), w.table.Open()
			st, err := w.xs.Stats()
			q.RxFillEmpty, q.RxRingFull, serr = st.FillEmpty, st.RxRingFull, err
		})
		if err == nil {
			err = serr
		}
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", u.name, err)
		}
		out = append(out, q)
	}
	return out, nil
}
