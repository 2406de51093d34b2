package bpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// HostBroadcast is the address of the row that a VLAN with neighbours of the host has beside theirs: group frames are handed over for it.
var HostBroadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// HostOptions says which interface's host is the neighbour of its VMs.
type HostOptions struct {
	Uplink int // ifindexes, in the network namespace of the calling thread
	Way    int // the device between host and controller
	// TakesUSO: packet sockets have a word for a train of datagrams (netdev.Way.TakesUSO). Without it the host's trains are cut on their way.
	TakesUSO bool
}

// hostPlace is a program of a HostProgram, and where it hangs.
type hostPlace struct {
	hook tcHook
	way  bool // on the device between host and controller; otherwise on the uplink
}

// hostPlaces are in the order in which programs are put in their places: who hands frames over is last.
var hostPlaces = [...]hostPlace{
	{tcHook{name: RscHostProgRscWayIn, at: ebpf.AttachTCXIngress, parent: netlink.HANDLE_MIN_INGRESS}, true},
	{tcHook{name: RscHostProgRscHostIn, at: ebpf.AttachTCXIngress, parent: netlink.HANDLE_MIN_INGRESS}, false},
	{tcHook{name: RscHostProgRscWayOut, at: ebpf.AttachTCXEgress, parent: netlink.HANDLE_MIN_EGRESS}, true},
	{tcHook{name: RscHostProgRscHostOut, at: ebpf.AttachTCXEgress, parent: netlink.HANDLE_MIN_EGRESS}, false},
}

func (h hostPlace) ifindex(o HostOptions) int {
	if h.way {
		return o.Way
	}
	return o.Uplink
}

// Names of what becomes of frames between host and VMs, in the order of enum host_outcome in abi.h.
var hostOutcomeNames = [...]string{
	"to_vm",       // the host's, for a VM, handed to the controller instead of the wire
	"group_to_vm", // the host's broadcast or multicast, handed over as well
	"to_host",     // VMs', arrived at the interface
	"lost",        // group frames of the host that could not be handed over
}

// HostProgram hands frames between an interface's host and the controller. Its methods may be called from any goroutine.
type HostProgram struct {
	o          HostOptions
	progs      [len(hostPlaces)]*ebpf.Program
	neighbours *ebpf.Map
	outcomes   *ebpf.Map

	mu    sync.Mutex // of what follows
	on    [len(hostPlaces)]*tcAttachment
	place [len(hostPlaces)]link.Link // an adopted program's, until it takes them
	rows  map[PortKey]bool           // in neighbours
	told  told
}

// LoadHost loads the programs; they do not hang anywhere, and nobody is a neighbour. Errors: those of LoadTap.
func LoadHost(o HostOptions) (*HostProgram, error) { return loadHost(o, nil) }

func loadHost(o HostOptions, from map[string]*ebpf.Map) (*HostProgram, error) {
	if o.Uplink <= 0 || o.Way <= 0 {
		return nil, fmt.Errorf("tc: load: interface index %d, %d: %w", o.Uplink, o.Way, ErrNoDevice)
	}
	spec, err := LoadRscHost()
	if err != nil {
		return nil, fmt.Errorf("tc: object: %w", err)
	}
	vars := map[string]any{RscHostVarUplink: uint32(o.Uplink), RscHostVarWay: uint32(o.Way), RscHostVarTakesUso: uint32(0)}
	if o.TakesUSO {
		vars[RscHostVarTakesUso] = uint32(1)
	}
	for name, value := range vars {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("tc: object: %s: %w", name, err)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: compatible(spec, from)})
	if err != nil {
		return nil, loadError("tc", err)
	}
	defer coll.Close()
	p := &HostProgram{o: o, neighbours: coll.DetachMap(RscHostMapNeighbours), outcomes: coll.DetachMap(RscHostMapOutcomes), rows: map[PortKey]bool{}}
	for i, at := range hostPlaces {
		p.progs[i] = coll.DetachProgram(at.hook.name)
	}
	return p, nil
}

// Attach hangs the programs in their places, in the network namespace of the calling thread; what another process that was killed left
// there by clsact goes. With an error none hangs. Errors: those of TapProgram.Attach.
func (p *HostProgram) Attach() error { return p.attachBy(tcHook.attachAlone) }

func (p *HostProgram) attachBy(attach func(h tcHook, ifindex int, prog *ebpf.Program) (*tcAttachment, error)) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, at := range hostPlaces {
		if p.on[i] != nil {
			return fmt.Errorf("tc: attach: %w", ErrAttached)
		}
		if p.on[i], err = attach(at.hook, at.ifindex(p.o), p.progs[i]); err != nil {
			return errors.Join(err, p.detach())
		}
	}
	return nil
}

// Detach takes the programs off, at once: the host's frames go to the wire again. Detaching twice, or from what is gone, is no error.
func (p *HostProgram) Detach() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.detach()
}

func (p *HostProgram) detach() error {
	var errs []error
	for i := range slices.Backward(p.on[:]) {
		errs = append(errs, p.on[i].detach())
		p.on[i] = nil
	}
	return errors.Join(errs...)
}

// Close detaches and frees the programs. nil, and closing twice, is no error.
func (p *HostProgram) Close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.Detach(), p.free())
}

func (p *HostProgram) free() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for i, l := range p.place {
		p.place[i] = nil
		errs = append(errs, closeLink(l), p.progs[i].Close())
	}
	return errors.Join(append(errs, p.neighbours.Close(), p.outcomes.Close())...)
}

// IDs are the kernel's numbers of the programs.
func (p *HostProgram) IDs() (out []uint32) {
	for _, prog := range p.progs {
		out = append(out, progID(prog))
	}
	return out
}

// Hangs reports whether all programs still are in their places: somebody may have taken one off.
func (p *HostProgram) Hangs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, on := range p.on {
		if on == nil || !on.hangs() {
			return false
		}
	}
	return true
}

// Mode returns ModeTCX, ModeClsact, or "" when not attached.
func (p *HostProgram) Mode() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.on[0].mode()
}

// SetNeighbours says which VMs have the host as their neighbour: rows that are not among them go, those that are stay throughout.
func (p *HostProgram) SetNeighbours(vms []PortKey) error {
	want := map[PortKey]bool{}
	for _, k := range vms {
		want[k] = true
		want[PortKey{VLAN: k.VLAN, MAC: HostBroadcast}] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range want {
		if p.rows[k] {
			continue
		}
		if err := p.neighbours.Put(k, uint32(1)); err != nil {
			return fmt.Errorf("tc: neighbour: %w", err)
		}
		p.rows[k] = true
	}
	for k := range maps.Clone(p.rows) {
		if want[k] {
			continue
		}
		if err := p.neighbours.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("tc: neighbour: %w", err)
		}
		delete(p.rows, k)
	}
	return nil
}

// Outcomes returns how many frames went between host and VMs, by what became of them.
func (p *HostProgram) Outcomes() (map[string]uint64, error) {
	return sumByName(p.outcomes, hostOutcomeNames[:])
}

// RemoveStaleHost removes what a process that was killed left on an uplink, in the network namespace of the calling thread. With TCX
// nothing is left. That there is nothing is no error.
func RemoveStaleHost(uplink int) error {
	var errs []error
	for _, at := range slices.Backward(hostPlaces[:]) { // the first one may have made the qdisc
		if !at.way {
			errs = append(errs, at.hook.removeStale(uplink))
		}
	}
	return errors.Join(errs...)
}
