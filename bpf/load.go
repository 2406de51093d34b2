package bpf

import (
	"errors"
	"fmt"
	"github.com/rscctl/rscctl/bpf/meta"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ProgramName is the name of the XDP program as the kernel shows it.
const ProgramName = RscProgRscXdp

// LoadOptions says for which interface the program is loaded.
type LoadOptions struct {
	Ifindex     int      // the interface, looked up in the network namespace of the calling thread
	Queues      int      // RX queues, the size of the socket map
	Native      bool     // meant for native mode: read accelerated VLAN tags if that is possible on this interface
	Jumbo       bool     // its frames may come in several pieces (xdp.frags, Linux 5.18); otherwise the driver refuses an MTU that makes them
	PortEntries int      // VMs at most, 0: meta.MaxPorts
	Beside      *Program // of another member of the same bond: the VMs, what is steered, the flows and the outcomes are the same; nil: of its own
}

// Program is the XDP program of one interface with its maps. Its methods may be called from any goroutine.
type Program struct {
	ifindex  int
	readsTag bool // relies on how veth calls it: native mode only
	kept     bool // outcomes are a predecessor's
	prog     *ebpf.Program
	id       atomic.Uint32 // prog's in the kernel, 0 until somebody asks
	ports    *ebpf.Map
	outcomes *ebpf.Map
	xsks     *ebpf.Map
	shares   *ebpf.Map
	excluded *ebpf.Map
	flows    *ebpf.Map // of each VM, by PortValue.Port
	cached   *ebpf.Map // flow_slots
	made     *ebpf.Map // rows_made
	device   *ebpf.Map
	slots    *slotMap // cached, in our memory

	mu   sync.Mutex // of what follows
	link link.Link  // kept here: an unreferenced link is closed by the garbage collector, and XDP silently detaches
	mode string
	told told

	excludes map[uint32][]uint16 // what the map excluded holds, by PortValue.Port, sorted
}

// Load loads the program and makes its maps. It does not attach. Errors: ErrPermission, ErrUnsupported, ErrNoDevice.
//
// With Native on a veth of a kernel that shows how, the program reads VLAN tags beside the frame (see ReadsVLANTag) and can
// then be attached in native mode only. Should the kernel refuse that, it is loaded without.
func Load(o LoadOptions) (*Program, error) { return loadOver(o, nil) }

// loadOver is Load with the maps of a program before, by name. Those that this version has otherwise are made anew.
func loadOver(o LoadOptions, maps map[string]*ebpf.Map) (*Program, error) {
	if o.Ifindex <= 0 || o.Queues <= 0 {
		return nil, fmt.Errorf("xdp: load: interface index %d, %d queues: %w", o.Ifindex, o.Queues, ErrNoDevice)
	}
	if o.Native && isVeth(o.Ifindex) {
		if at, ok := vethTagOffsets(); ok {
			if p, err := load(o, at, maps); err == nil {
				return p, nil
			}
		}
	}
	return load(o, tagOffsets{}, maps)
}

func load(o LoadOptions, at tagOffsets, maps map[string]*ebpf.Map) (*Program, error) {
	spec, err := LoadRsc()
	if err != nil {
		return nil, fmt.Errorf("xdp: object: %w", err)
	}
	if err := sizeMaps(spec, o); err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	jumbo := uint32(0)
	if o.Jumbo {
		jumbo, spec.Programs[RscProgRscXdp].Flags = 1, unix.BPF_F_XDP_HAS_FRAGS
	}
	for name, value := range map[string]uint32{RscVarVethSkb: at.skb, RscVarSkbVlan: at.vlan, RscVarJumbo: jumbo} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("xdp: object: %w", err)
		}
	}
	kept := compatible(spec, maps)
	for name, m := range o.Beside.shared() {
		kept[name] = m
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept})
	if err != nil {
		return nil, loadError("xdp", err)
	}
	p := &Program{
		ifindex: o.Ifindex, readsTag: at.skb != 0, kept: kept[RscMapOutcomes] != nil,
		prog:     coll.DetachProgram(RscProgRscXdp),
		excludes: map[uint32][]uint16{}, excluded: coll.DetachMap(RscMapExcluded),
		ports: coll.DetachMap(RscMapPorts), outcomes: coll.DetachMap(RscMapOutcomes), xsks: coll.DetachMap(RscMapXsks),
		flows: coll.DetachMap(RscMapFlows), shares: coll.DetachMap(RscMapShares),
		cached: coll.DetachMap(RscMapFlowSlots), made: coll.DetachMap(RscMapRowsMade), device: coll.DetachMap(RscMapDevice),
	}
	coll.Close()
	if p.slots, err = openSlots(p.cached); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("xdp: %w", err)
	}
	return p, nil
}

// shared are the maps that the programs of one bond's members have together.
func (p *Program) shared() map[string]*ebpf.Map {
	if p == nil {
		return nil
	}
	return map[string]*ebpf.Map{RscMapPorts: p.ports, RscMapOutcomes: p.outcomes, RscMapExcluded: p.excluded, RscMapFlows: p.flows, RscMapFlowSlots: p.cached, RscMapRowsMade: p.made}
}

// TakeLead makes this program the one whose SetExcluded is called from now on, after another's with the same maps.
func (p *Program) TakeLead() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.excludes)
	if err := p.readExcluded(); err != nil {
		return fmt.Errorf("xdp: %w", err)
	}
	return nil
}

// sizeMaps gives the maps their sizes.
func sizeMaps(spec *ebpf.CollectionSpec, o LoadOptions) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("how many CPUs: %w", err)
	}
	spec.Maps[RscMapFlowSlots].MaxEntries = uint32(cpus * flowSlots)
	spec.Maps[RscMapXsks].MaxEntries = uint32(o.Queues)
	spec.Maps[RscMapShares].MaxEntries = uint32(o.Queues)
	spec.Maps[RscMapPorts].MaxEntries = orDefault(o.PortEntries, meta.MaxPorts)
	return nil
}

// maps are the program's maps by their names in the object.
func (p *Program) maps() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		RscMapPorts: p.ports, RscMapOutcomes: p.outcomes, RscMapXsks: p.xsks, RscMapShares: p.shares, RscMapExcluded: p.excluded, RscMapFlows: p.flows,
		RscMapFlowSlots: p.cached, RscMapRowsMade: p.made, RscMapDevice: p.device,
	}
}

// compatible are the maps that a program of the specification can use.
func compatible(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	for name, m := range maps {
		if s := spec.Maps[name]; m != nil && s != nil && s.Compatible(m) == nil {
			out[name] = m
		}
	}
	return out
}

func orDefault(n, def int) uint32 {
	if n <= 0 {
		n = def
	}
	return uint32(n)
}

// loadError keeps the verifier's last line; its whole log is in the chain for %+v.
func loadError(kind string, err error) error {
	var ve *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &ve):
		return fmt.Errorf("%s: load: %w: %w", kind, ErrPermission, err)
	case errors.As(err, &ve):
		return fmt.Errorf("%s: load: %w: verifier: %w", kind, ErrUnsupported, err)
	}
	return fmt.Errorf("%s: load: %w: %w", kind, ErrUnsupported, err)
}

// Close detaches and frees the program and its maps; the VMs' flow maps and Shares stay open. Closing twice is no error.
func (p *Program) Close() error {
	err := p.Detach()
	p.mu.Lock()
	defer p.mu.Unlock()
	errs := []error{err, p.prog.Close(), p.slots.close()}
	for _, m := range p.maps() {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// ReadsVLANTag reports whether the program sees 802.1Q tags that were taken out of the frames. When it is false, the
// caller must have them left in: such a frame looks untagged.
func (p *Program) ReadsVLANTag() bool { return p.readsTag }

// NameOf is the name of a program of whoever, "" when it cannot be seen.
func NameOf(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}

// RemoveXDP is the command that takes a foreign XDP program off its interface. ip, which is the one for programs that were attached by
// netlink, is refused as busy for a program that a BPF link holds there (net/core/dev.c dev_xdp_attach).
func RemoveXDP(program ebpf.ProgramID, ip string) string {
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		info, err := links.Link.Info()
		if err != nil || info.Type != link.XDPType || info.Program != program {
			continue
		}
		if on := info.XDP(); on != nil && on.Ifindex != 0 { // otherwise it is detached, and somebody still has it open
			return fmt.Sprintf("bpftool link detach id %d", links.ID)
		}
	}
	return ip
}
