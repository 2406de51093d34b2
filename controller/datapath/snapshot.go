package datapath

import (
	"time"

	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable"
)

// Snapshot is all that one worker has to say of itself and its VMs, taken between two bursts, so that its counts agree.
type Snapshot struct {
	ID        int
	Counters  QueueCounters
	Kernel    xsk.Stats // the NIC queue's
	KernelErr error     // why Kernel is not known
	HeldSlots int       // open slots of the flow table
	HeldRefs  int       // chunks that the table holds
	Chunks    int       // in the UMEM
	CPU       int64     // ns of processor time that the worker's thread has had
	Ports     []PortSnapshot
}

// PortSnapshot is one VM as one worker sees it.
type PortSnapshot struct {
	Index    uint32
	Addr     Addr
	Running  bool          // it has a guest
	Single   time.Duration // how long the guest gets no superframes from now on, because it seems to drop them; 0: it gets them
	Hold     time.Duration // that its superframes get now, on average
	Hungry   bool          // the guest has no room
	ByKernel bool          // what it sends to the wire goes by Config.Wire now, from some virtqueue at least
	Err      error         // why the guest is finished, nil while it is not
	Waiting  int           // frames in the output queue
	InGuest  int           // chunks that the guest has not given back
	Ledger   flowtable.Ledger
	Counters PortCounters
}

// Port returns a VM's part of the snapshot, nil when the worker does not know it.
func (s *Snapshot) Port(index uint32) *PortSnapshot {
	for i := range s.Ports {
		if s.Ports[i].Index == index {
			return &s.Ports[i]
		}
	}
	return nil
}

// Snapshot is one message, for all VMs at once.
func (w *Worker) Snapshot() (*Snapshot, error) { return ask(w, w.snapshot) }

func (w *Worker) snapshot() *Snapshot {
	if w.group != nil {
		w.cnt.GroupLost, w.cnt.GroupOdd = w.group.Dropped()
	}
	if w.host.In != nil {
		slow, odd := w.host.In.Dropped()
		w.cnt.HostSlow = slow + odd
	}
	if w.cfg.Large != nil {
		lost := w.cfg.Large.Lost()
		w.cnt.NoBuffer, w.cnt.Broken = lost.NoBuffer, lost.Broken+w.torn
	}
	s := &Snapshot{
		ID: w.cfg.ID, Counters: w.cnt, Chunks: w.cfg.Chunks, HeldSlots: w.table.Open(), HeldRefs: w.table.Held(), CPU: w.waits().cpu,
		Ports: make([]PortSnapshot, 0, len(w.list)),
	}
	s.Kernel, s.KernelErr = w.nic.Stats()
	for _, p := range w.list {
		s.Ports = append(s.Ports, PortSnapshot{
			Index: p.Index, Addr: p.Addr, Running: p.guest != nil, Single: p.refusal.singleFor(w.clock()), Hungry: p.hungry, ByKernel: p.byKernel(), Err: p.err,
			Hold: w.table.HoldNow(p.Index), Waiting: p.out.n, InGuest: p.held, Ledger: *p.ledger, Counters: p.cnt,
		})
	}
	return s
}
