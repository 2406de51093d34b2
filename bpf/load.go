package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// ProgramName is the name of the XDP program as the kernel shows it.
const ProgramName = "rsc_xdp"

// LoadOptions says for which interface the program is loaded.
type LoadOptions struct {
	Ifindex     int       // the interface; also a part of every FlowKey
	Queues      int       // RX queues, the size of the socket map
	Native      bool      // meant for native mode: bind to the device if the kernel and the driver have the VLAN tag for it
	Flows       *ebpf.Map // shared flow map (OpenFlows); nil: one of its own
	FlowEntries int       // size of an own flow map, 0: DefaultFlowEntries
	PortEntries int       // VMs at most, 0: DefaultPortEntries
}

// Sizes used when LoadOptions leaves them 0.
const (
	DefaultFlowEntries = 65536
	DefaultPortEntries = 1024
)

// Program is the XDP program of one interface with its maps. Its methods may be called from any goroutine.
type Program struct{}

// Load loads the program and makes its maps. It does not attach. Errors: ErrPermission, ErrUnsupported, ErrNoDevice.
func Load(o LoadOptions) (*Program, error) { return nil, fmt.Errorf("xdp: load: %w", ErrUnsupported) }

// Attach puts the program on its interface, native or generic, through a BPF link that dies with this process.
// Errors: ErrForeignXDP, ErrUnsupported (this mode), ErrPermission, ErrNoDevice.
func (p *Program) Attach(native bool) error { return nil }

// Detach takes the program off the interface. Detaching twice is no error.
func (p *Program) Detach() error { return nil }

// Close detaches and frees the program and its own maps; a shared flow map stays open.
func (p *Program) Close() error { return nil }

// Mode returns "native", "generic", or "" when not attached.
func (p *Program) Mode() string { return "" }

// ReadsVLANTag reports whether the program sees 802.1Q tags that were taken out of the frames. When it is false, the
// caller must have them left in.
func (p *Program) ReadsVLANTag() bool { return false }

// SetPort adds or changes a VM.
func (p *Program) SetPort(k PortKey, v PortValue) error { return nil }

// DeletePort removes a VM. Error: ErrNoPort.
func (p *Program) DeletePort(k PortKey) error { return nil }

// SetSocket makes fd, an AF_XDP socket bound to this interface and queue, the target of the queue's frames.
func (p *Program) SetSocket(queue, fd int) error { return nil }

// ClearSocket removes the queue's socket: its frames are passed to the kernel. Clearing twice is no error.
func (p *Program) ClearSocket(queue int) error { return nil }

// Verdicts returns how many frames ended in which way, by name, summed over the CPUs.
func (p *Program) Verdicts() (map[string]uint64, error) { return nil, nil }
