package report

import (
	"errors"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/flowtable"
)

// Snapshot is what is known of the uplinks at one moment. Each worker's part was taken between two of its bursts.
type Snapshot struct {
	Uplinks []Uplink // by name
}

// Uplink is one interface in use.
type Uplink struct {
	Name      string
	Index     int
	MTU       int // bytes behind the Ethernet header
	Driver    string
	Up        bool // switched on
	Carrier   bool // somebody is at the other end
	XDPMode   api.XDPMode
	ZeroCopy  bool
	ChunkSize int                 // bytes of a UMEM chunk
	BusyPoll  time.Duration       // see api.Interface
	Changes   []string            // what was changed on the host, in words
	Warnings  []string            //
	Outcomes  map[string]uint64   // of the XDP program, by name
	Host      map[string]uint64   // of the TC programs between host and VMs; nil: there are none
	Bond      *api.Bond           // nil: the interface is none
	Foreign   *api.ForeignProgram // nil: the XDP program is ours
	Remedy    string              // what to do about partial checksums on this interface
	Queues    []Queue             // by id
	VMs       []VM                // by name
}

// Queue is one NIC queue and its worker.
type Queue struct {
	ID     int
	Device string // of a bond: the member that it is a queue of, and its number there
	NIC    int
	Seen   *datapath.Snapshot // nil when the worker did not answer
	Err    error              // why it did not
	CPUs   []int              // see api.Queue
	Before *api.Queue         // counted by a process before this one, nil: by none
	// What XDP knows of the worker, also when it does not answer: how often it was taken for hung, and what the kernel's path took then.
	Hangs, HangPassed uint64
	// Likewise: frames that it dropped because their VM had its share of the RX ring, and of them those of the VM at each index.
	Refused   uint64
	RefusedOf [datapath.MaxPorts]uint64
}

// VM is one attached VM.
type VM struct {
	Index  uint32       // of its port on the workers
	Port   api.Port     // what its kind of port and its policy say; warnings are added here
	Before *api.VMStats // counted by a process before this one, nil: by none
	// Counts that a kind of port keeps beside the workers', by name.
	Interrupts  uint64
	TapDropped  uint64
	TxDropped   map[string]uint64
	Vhost       map[string]uint64 // of its virtqueues
	TapOutcomes map[string]uint64 // of the TC program on its tap
	PartialPast bool              // no frame with a partial checksum has come of late
}

// workerState says in the API's words how a worker is.
func (q *Queue) workerState() api.WorkerState {
	switch {
	case q.Seen != nil:
		return api.WorkerRunning
	case errors.Is(q.Err, datapath.ErrStuck):
		return api.WorkerStuck
	}
	return api.WorkerFailed
}

// totals are a VM's counts, summed over the workers that answered.
type totals struct {
	flowtable.Ledger
	datapath.PortCounters
}

func (u *Uplink) totals(index uint32) (t totals) {
	for i := range u.Queues {
		if u.Queues[i].Seen == nil {
			continue
		}
		p := u.Queues[i].Seen.Port(index)
		if p == nil {
			continue
		}
		t.Ledger.Add(&p.Ledger)
		t.PortCounters.Add(&p.Counters)
	}
	return t
}

// PartialChecksums counts the frames for a VM whose sender left the checksum to an offload that never ran.
func (u *Uplink) PartialChecksums(vm *VM) uint64 {
	t := u.totals(vm.Index)
	n := t.Passed[flowtable.ReasonPartialChecksum]
	if vm.Before != nil {
		n += vm.Before.Passed[flowtable.ReasonPartialChecksum.String()]
	}
	return n
}
