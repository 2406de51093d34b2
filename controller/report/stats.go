package report

import (
	"strconv"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/flowtable"
)

// Stats is every counter of one VM, or with vm empty of all, and what XDP and AF_XDP counted beside them.
func Stats(s *Snapshot, vm string) api.Stats {
	out := api.Stats{Schema: api.Schema, VMs: []api.VMStats{}, Queues: map[string]api.Queue{}, Outcomes: map[string]uint64{}}
	for i := range s.Uplinks {
		u := &s.Uplinks[i]
		for n := range u.VMs {
			if v := &u.VMs[n]; vm == "" || vm == v.Port.VM {
				st := u.stats(v)
				out.Unexplained += st.Unexplained
				out.VMs = append(out.VMs, st)
			}
		}
		for n := range u.Queues {
			out.Queues[u.Name+"/"+strconv.Itoa(u.Queues[n].ID)] = u.queue(&u.Queues[n])
		}
		for k, n := range u.Outcomes {
			out.Outcomes[k] += n
		}
		for k, n := range u.Host {
			if out.HostOutcomes == nil {
				out.HostOutcomes = map[string]uint64{}
			}
			out.HostOutcomes[k] += n
		}
	}
	return out
}

// Counted is what the workers have counted of a VM, here and in processes before this one.
func (u *Uplink) Counted(v *VM) api.VMStats { return u.stats(v) }

// stats sums a VM's counters over the workers.
func (u *Uplink) stats(v *VM) api.VMStats {
	t := u.totals(v.Index)
	s := api.VMStats{
		VM: v.Port.VM, Iface: u.Name,
		RxPackets: t.In + t.Refused, RxBytes: t.InBytes + t.RefusedBytes,
		Superframes: t.Superframes, MergedPackets: t.Merged, GuestFrames: t.Frames, GuestBytes: t.FrameBytes,
		Held: t.Held + t.Queued, Unexplained: t.Unexplained(), Recut: t.Recut,
		TxFrames: t.TxFrames, TxBytes: t.TxBytes, TxWireFrames: t.TxWire, TxKernel: t.TxKernel, TxWhole: t.TxWhole,
		LocalFrames: t.Local, ToHost: t.ToHost, FromHost: t.FromHost, LatePackets: t.Late, FeedUnsent: t.Unsent, StalledNS: t.StalledNS, Rests: t.Rests, Refusals: t.Refusals, TxPaced: t.TxPaced, TapDropped: v.TapDropped, Interrupts: v.Interrupts,
		Passed: byReason(&t.Passed), Sealed: byReason(&t.Sealed), Dropped: byReason(&t.Dropped), TxDropped: byReason(&t.TxDropped),
		FrameBytes: buckets(datapath.SizeBounds[:], t.FrameSizes[:]), FrameBytesSum: t.SizeSum,
		HoldNS: buckets(flowtable.HoldBounds[:], t.HoldHist[:]), HoldNSSum: t.HoldSum,
		QEMU: map[string]uint64{}, Virtio: map[string]uint64{}, Vhost: v.Vhost, TapOutcomes: v.TapOutcomes,
	}
	for name, n := range v.TxDropped {
		if n > 0 {
			s.TxDropped[name] += n
		}
	}
	for _, c := range t.QEMU() {
		s.QEMU[c.Name] = c.Value
	}
	for _, c := range t.Virtio() {
		s.Virtio[c.Name] = c.Value
	}
	if v.Before != nil {
		s.Add(v.Before)
	}
	for i := range u.Queues { // the kernel counts it, and goes on with it from process to process
		s.RxShare += u.Queues[i].RefusedOf[v.Index]
	}
	return s
}

// byReason names the counts that are not 0.
func byReason(counts *[flowtable.NumReasons]uint64) map[string]uint64 {
	m := map[string]uint64{}
	for r, n := range counts {
		if n > 0 {
			m[flowtable.Reason(r).String()] = n
		}
	}
	return m
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
