package report

import (
	"fmt"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// Interfaces is the list of interfaces that status shows.
func Interfaces(s *Snapshot) []api.Interface {
	out := make([]api.Interface, 0, len(s.Uplinks))
	for i := range s.Uplinks {
		out = append(out, s.Uplinks[i].status())
	}
	return out
}

func (u *Uplink) status() api.Interface {
	i := api.Interface{
		Name: u.Name, Index: u.Index, MTU: u.MTU, Driver: u.Driver, Link: u.link(), XDPMode: u.XDPMode, XSKMode: api.XSKCopy,
		BusyPollNS: int64(u.BusyPoll), Metadata: u.metadata(), Queues: make([]api.Queue, 0, len(u.Queues)), Ports: make([]api.Port, 0, len(u.VMs)),
		Changes: orEmpty(u.Changes), Warnings: orEmpty(slices.Clone(u.Warnings)),
	}
	i.Bond, i.Foreign = u.Bond, u.Foreign
	if u.ZeroCopy {
		i.XSKMode = api.XSKZeroCopy
	}
	i.Health = u.health(i.Warnings)
	for n := range u.Queues {
		q := &u.Queues[n]
		if q.Err != nil {
			i.Warnings = append(i.Warnings, fmt.Sprintf("queue %d of %s: %s", q.ID, u.Name, u.workerTrouble(q.Err)))
		}
		i.Queues = append(i.Queues, u.queue(q))
	}
	for n := range u.VMs {
		vm := &u.VMs[n]
		p := vm.Port
		p.Warnings = orEmpty(slices.Clone(p.Warnings))
		if n := u.PartialChecksums(vm); n > 0 && !vm.PartialPast {
			p.Warnings = append(p.Warnings, u.PartialWarning(vm, n))
		}
		if d := u.single(vm); d > 0 {
			when := "with what comes next"
			if d >= time.Second {
				when = "in " + d.Round(time.Second).String()
			}
			p.Warnings = append(p.Warnings, fmt.Sprintf("the guest seems to drop superframes: it gets its packets one by one, and is tried again %s: see 'rscctl why %s'", when, p.VM))
		}
		p.HoldNowNS = HoldNow(u.Queues, vm.Index).Nanoseconds()
		if p.Feed == api.FeedVhostUser {
			p.Tx = u.txWay(vm)
		}
		p.Health = u.portHealth(vm, &p)
		i.Ports = append(i.Ports, p)
	}
	return i
}

// single is how long a VM gets no superframes on some queue, because its guest seems to drop them.
func (u *Uplink) single(vm *VM) (longest time.Duration) {
	for i := range u.Queues {
		if s := u.Queues[i].Seen; s != nil {
			if p := s.Port(vm.Index); p != nil {
				longest = max(longest, p.Single)
			}
		}
	}
	return longest
}

// HoldNow is the longest of the holds that a VM's superframes get on the queues now; 0 while none is held.
func HoldNow(queues []Queue, index uint32) (longest time.Duration) {
	for i := range queues {
		if s := queues[i].Seen; s != nil {
			if p := s.Port(index); p != nil && p.Running {
				longest = max(longest, p.Hold)
			}
		}
	}
	return longest
}

// txWay is the way of what a VM sends to the wire: the kernel's when it is that of one of its queues.
func (u *Uplink) txWay(vm *VM) api.TxWay {
	for i := range u.Queues {
		if s := u.Queues[i].Seen; s != nil {
			if p := s.Port(vm.Index); p != nil && p.ByKernel {
				return api.TxKernel
			}
		}
	}
	return api.TxAFXDP
}

// metadata tells whether the XDP program's description arrives with the frames. Before the first frame nobody knows.
func (u *Uplink) metadata() *bool {
	var frames, with uint64
	for i := range u.Queues {
		if s := u.Queues[i].Seen; s != nil {
			frames += s.Counters.RxFrames
			with += s.Counters.WithMeta
		}
	}
	if frames == 0 || u.Foreign != nil {
		return nil
	}
	yes := with > 0
	return &yes
}

// Counted is what goes on of a queue's counts when another process goes on with it.
func (q *Queue) Counted() api.Queue {
	u := Uplink{}
	now, out := u.queue(q), api.Queue{}
	out.Add(&now)
	return out
}

// queue shows a NIC queue, with AF_XDP's own drop counters beside ours.
func (u *Uplink) queue(q *Queue) api.Queue {
	out := api.Queue{ID: q.ID, Device: q.Device, DeviceQueue: q.NIC, ChunkSize: u.ChunkSize, Worker: q.workerState(), Health: u.queueHealth(q), Hangs: q.Hangs, HangPassed: q.HangPassed, RxShare: q.Refused, CPUs: q.CPUs}
	if q.Before != nil {
		out.Add(q.Before)
	}
	s := q.Seen
	if s == nil {
		return out
	}
	c, k := &s.Counters, &s.Kernel
	out.Chunks, out.Held, out.OpenSlots = s.Chunks, s.HeldRefs, s.HeldSlots
	out.Add(&api.Queue{RxFrames: c.RxFrames, TxFrames: c.TxFrames, TxKernel: c.TxKernel, TxRingFull: c.TxRingFull, RxUnknown: c.Unknown, RxNobody: c.Nobody, RxNoBuffer: c.NoBuffer, RxBroken: c.Broken, GroupLost: c.GroupLost, GroupUnusable: c.GroupOdd, HostLost: c.HostLost + c.HostSlow, CPUNS: uint64(s.CPU)})
	out.RxFillEmpty, out.RxRingFull, out.RxTooLong = k.FillEmpty, k.RxRingFull, k.RxDropped
	out.RxInvalid, out.TxInvalid = k.RxInvalid, k.TxInvalid
	return out
}

// PartialWarning says what n frames with partial checksums mean for a VM, and what to do.
func (u *Uplink) PartialWarning(vm *VM, n uint64) string {
	return fmt.Sprintf("%d frames for VM %s came with partial checksums, are not merged and will be dropped by the guest: %s", n, vm.Port.VM, u.Remedy)
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
