package controller

import (
	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
)

// program is what brings the frames of a device to its sockets, and what it knows of VMs: an XDP program of ours (*bpf.Program), or somebody
// else's, of which we have the map of its sockets and nothing more (foreign). The contract of each method stands at *bpf.Program.
type program interface {
	SetSocket(queue, fd int) error
	SharesAhead(queue, room, fill int) (*bpf.Shares, error) // nil: there are none

	SetPort(bpf.PortKey, bpf.PortValue) error
	DeletePort(bpf.PortKey) error
	SetExcluded(port uint32, tcpPorts []uint16) error
	SetFlows(id uint32, m *ebpf.Map) error
	EndFlows(id uint32, m *ebpf.Map) error
	Slots() *bpf.SlotView
	Evicted(id uint32, rows []bpf.Flow) uint64
	Outcomes() (map[string]uint64, error)

	Mode() string
	ID() uint32 // of what must stay on the interface; 0: nothing
	ReadsVLANTag() bool
	SetBackup(backup bool) error
	TakeLead() error

	Attach(native bool) error
	TakePlace() error
	Detach() error
	Release() error
	Close() error
}

var _ program = (*bpf.Program)(nil)

// ours is a device's own program, nil where it is somebody else's.
func ours(p program) *bpf.Program {
	own, _ := p.(*bpf.Program)
	return own
}
