package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// TapProgramName is the name of the TC program as the kernel shows it, for TCX and for clsact.
const TapProgramName = RscTapProgRscTap

// tapHook is the tap's ingress: where the host receives what the VM sends.
var tapHook = tcHook{name: TapProgramName, at: ebpf.AttachTCXIngress, parent: netlink.HANDLE_MIN_INGRESS}

// TapOptions says whose frames are counted, and as whose.
type TapOptions struct {
	Ifindex int       // the tap, in the network namespace of the calling thread
	VLAN    uint16    // id, 0 untagged: what the wire's tag adds to a frame
	MAC     [6]byte   // the VM's; frames from others are not counted
	Flows   *ebpf.Map // the VM's flow map (Flows.VM); nil: one of its own
}

// TapProgram counts the TCP flows that a VM sends through its tap, under DirToWire. A frame larger than the MTU counts as
// the segments and the bytes that it becomes on the wire. It decides nothing about frames. Its methods may be called from any
// goroutine.
type TapProgram struct {
	ifindex  int
	kept     bool // outcomes are a predecessor's
	prog     *ebpf.Program
	outcomes *ebpf.Map
	flows    *ebpf.Map // nil when shared

	mu    sync.Mutex // of what follows
	on    *tcAttachment
	place link.Link // an adopted program's, until it takes it
	told  told
}

// LoadTap loads the program for one tap; it does not attach. Errors: ErrPermission, ErrUnsupported, ErrNoDevice.
func LoadTap(o TapOptions) (*TapProgram, error) { return loadTap(o, nil) }

// loadTap is LoadTap with the map of outcomes of a program before, or nil.
func loadTap(o TapOptions, outcomes *ebpf.Map) (*TapProgram, error) {
	if o.Ifindex <= 0 {
		return nil, fmt.Errorf("tc: load: interface index %d: %w", o.Ifindex, ErrNoDevice)
	}
	spec, err := LoadRscTap()
	if err != nil {
		return nil, fmt.Errorf("tc: object: %w", err)
	}
	if o.Flows != nil {
		spec.Maps[RscTapMapFlows].MaxEntries = o.Flows.MaxEntries()
	} else {
		spec.Maps[RscTapMapFlows].MaxEntries = DefaultFlowEntries
	}
	for name, value := range map[string]any{
		RscTapVarVlan: o.VLAN, RscTapVarGuest: o.MAC,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("tc: object: %s: %w", name, err)
		}
	}
	kept := compatible(spec, map[string]*ebpf.Map{RscTapMapOutcomes: outcomes})
	if o.Flows != nil {
		kept[RscTapMapFlows] = o.Flows // or an error
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept})
	if err != nil {
		return nil, loadError("tc", err)
	}
	p := &TapProgram{ifindex: o.Ifindex, kept: kept[RscTapMapOutcomes] != nil, prog: coll.DetachProgram(RscTapProgRscTap), outcomes: coll.DetachMap(RscTapMapOutcomes)}
	if o.Flows == nil {
		p.flows = coll.DetachMap(RscTapMapFlows)
	}
	coll.Close() // with a shared map: our reference to it only
	return p, nil
}

// Attach hangs the program on the tap, in the network namespace of the calling thread: by TCX, in front of all other
// programs, or where the kernel has no TCX by a filter under clsact. Errors: ErrUnsupported, ErrPermission, ErrNoDevice.
func (p *TapProgram) Attach() error { return p.attachBy(tapHook.attach) }

func (p *TapProgram) attachBy(attach func(ifindex int, prog *ebpf.Program) (*tcAttachment, error)) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on != nil {
		return fmt.Errorf("tc: attach: %w", ErrAttached)
	}
	p.on, err = attach(p.ifindex, p.prog)
	return err
}

// Detach takes the program off the tap, at once. Detaching twice, or from a tap that is gone, is no error.
func (p *TapProgram) Detach() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.on.detach()
	p.on = nil
	return err
}

// Close detaches and frees the program and its own maps; a shared flow map stays open. Closing twice is no error.
func (p *TapProgram) Close() error {
	p.mu.Lock()
	place := p.place
	p.place = nil
	p.mu.Unlock()
	return errors.Join(p.Detach(), closeLink(place), p.prog.Close(), p.outcomes.Close(), p.flows.Close())
}

// Mode returns ModeTCX, ModeClsact, or "" when not attached.
func (p *TapProgram) Mode() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.on.mode()
}

// Names of what becomes of a frame from a VM, in the order of enum tap_outcome in abi.h.
var tapOutcomeNames = [...]string{
	"counted",     // under its flow
	"no_flow",     // not TCP, or without readable ports
	"foreign_mac", // the source address is not the VM's
	"foreign_tag", // the VM put the tag of some VLAN into the frame
	"flow_lost",   // the flow map had no room
}

// Outcomes returns how many frames (not segments) the VM sent, by what was done about counting them. All of them went
// their way.
func (p *TapProgram) Outcomes() (map[string]uint64, error) {
	return sumByName(p.outcomes, tapOutcomeNames[:])
}

// Flows returns the flow map in use when it is the program's own, nil when it is shared.
func (p *TapProgram) Flows() *ebpf.Map { return p.flows }
