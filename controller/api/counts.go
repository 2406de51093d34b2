package api

import (
	"cmp"
	"slices"
)

// Count is one entry of a map of counters, such as VMStats.Passed.
type Count struct {
	Name string
	N    uint64
}

// ByCount sorts counters by count, largest first, then by name; zeros are left out.
func ByCount(m map[string]uint64) (out []Count) {
	for name, n := range m {
		if n > 0 {
			out = append(out, Count{name, n})
		}
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Name, b.Name)) })
	return out
}

// Add adds what was counted of the same VM before: by another process, or on another worker. Held is a level and no count: it stays.
func (s *VMStats) Add(o *VMStats) {
	s.RxPackets += o.RxPackets
	s.RxBytes += o.RxBytes
	s.Superframes += o.Superframes
	s.MergedPackets += o.MergedPackets
	s.GuestFrames += o.GuestFrames
	s.GuestBytes += o.GuestBytes
	s.Recut += o.Recut
	s.Interrupts += o.Interrupts
	s.TxFrames += o.TxFrames
	s.TxBytes += o.TxBytes
	s.TxWireFrames += o.TxWireFrames
	s.TxKernel += o.TxKernel
	s.TxWhole += o.TxWhole
	s.LocalFrames += o.LocalFrames
	s.ToHost += o.ToHost
	s.FromHost += o.FromHost
	s.LatePackets += o.LatePackets
	s.FeedUnsent += o.FeedUnsent
	s.StalledNS += o.StalledNS
	s.Rests += o.Rests
	s.Refusals += o.Refusals
	s.TxPaced += o.TxPaced
	s.TapDropped += o.TapDropped
	s.FrameBytesSum += o.FrameBytesSum
	s.HoldNSSum += o.HoldNSSum
	s.Unexplained += o.Unexplained
	s.Passed = addNamed(s.Passed, o.Passed)
	s.Sealed = addNamed(s.Sealed, o.Sealed)
	s.Dropped = addNamed(s.Dropped, o.Dropped)
	s.TxDropped = addNamed(s.TxDropped, o.TxDropped)
	s.QEMU = addNamed(s.QEMU, o.QEMU)
	s.Virtio = addNamed(s.Virtio, o.Virtio)
	s.Vhost = addNamed(s.Vhost, o.Vhost)
	s.TapOutcomes = addNamed(s.TapOutcomes, o.TapOutcomes)
	s.FrameBytes, s.HoldNS = addBuckets(s.FrameBytes, o.FrameBytes), addBuckets(s.HoldNS, o.HoldNS)
}

func addNamed(to, from map[string]uint64) map[string]uint64 {
	if to == nil && len(from) > 0 {
		to = map[string]uint64{}
	}
	for name, n := range from {
		to[name] += n
	}
	return to
}

// addBuckets adds by bound. A version with other bounds than ours had: its counts go to the next larger bound that we have.
func addBuckets(to, from []Bucket) []Bucket {
	for _, b := range from {
		if b.Count == 0 {
			continue
		}
		for i := range to {
			if to[i].Le == 0 || b.Le != 0 && b.Le <= to[i].Le {
				to[i].Count += b.Count
				break
			}
		}
	}
	return to
}

// Add adds what another process counted of the same queue. What the kernel counts goes on by itself, and levels stay.
func (q *Queue) Add(o *Queue) {
	q.RxFrames += o.RxFrames
	q.TxFrames += o.TxFrames
	q.TxKernel += o.TxKernel
	q.TxRingFull += o.TxRingFull
	q.RxUnknown += o.RxUnknown
	q.RxNobody += o.RxNobody
	q.RxNoBuffer += o.RxNoBuffer
	q.RxBroken += o.RxBroken
	q.GroupLost += o.GroupLost
	q.GroupUnusable += o.GroupUnusable
	q.HostLost += o.HostLost
	q.CPUNS += o.CPUNS
}

// Lost is what the queue lost before the worker had it, and on its way out.
func (q *Queue) Lost() uint64 {
	return q.RxFillEmpty + q.RxRingFull + q.RxShare + q.RxTooLong + q.RxNoBuffer + q.RxBroken + q.TxRingFull
}
