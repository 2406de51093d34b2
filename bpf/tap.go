package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// TapProgramName is the name of the TC program as the kernel shows it, for TCX and for clsact.
const TapProgramName = RscTapProgRscTap

// Names of the ways a TC program hangs on its tap, as TapProgram.Mode returns them.
const (
	ModeTCX    = "tcx"    // a BPF link, gone with its process (Linux 6.6)
	ModeClsact = "clsact" // a filter, which stays behind when the process dies (see RemoveStaleTap)
)

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
	prog     *ebpf.Program
	outcomes *ebpf.Map
	flows    *ebpf.Map // nil when shared

	mu     sync.Mutex // of what follows
	link   link.Link
	filter *tcFilter
}

// LoadTap loads the program for one tap; it does not attach. Errors: ErrPermission, ErrUnsupported, ErrNoDevice.
func LoadTap(o TapOptions) (*TapProgram, error) {
	if o.Ifindex <= 0 {
		return nil, fmt.Errorf("tc: load: interface index %d: %w", o.Ifindex, ErrNoDevice)
	}
	spec, err := LoadRscTap()
	if err != nil {
		return nil, fmt.Errorf("tc: object: %w", err)
	}
	opts := ebpf.CollectionOptions{}
	if o.Flows != nil {
		spec.Maps[RscTapMapFlows].MaxEntries = o.Flows.MaxEntries()
		opts.MapReplacements = map[string]*ebpf.Map{RscTapMapFlows: o.Flows}
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
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, loadError("tc", err)
	}
	p := &TapProgram{ifindex: o.Ifindex, prog: coll.DetachProgram(RscTapProgRscTap), outcomes: coll.DetachMap(RscTapMapOutcomes)}
	if o.Flows == nil {
		p.flows = coll.DetachMap(RscTapMapFlows)
	}
	coll.Close() // with a shared map: our reference to it only
	return p, nil
}

// Attach hangs the program on the tap, in the network namespace of the calling thread: by TCX, in front of all other
// programs, or where the kernel has no TCX by a filter under clsact. Errors: ErrUnsupported, ErrPermission, ErrNoDevice.
func (p *TapProgram) Attach() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != nil || p.filter != nil {
		return fmt.Errorf("tc: attach: %w", ErrAttached)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: p.ifindex, Program: p.prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return p.attachFilter()
	}
	if err != nil {
		return tapError("attach", p.ifindex, err)
	}
	p.link = l
	return nil
}

// attachFilter is Attach by clsact. The lock is held.
func (p *TapProgram) attachFilter() error {
	f, err := addFilter(p.ifindex, p.prog.FD())
	if err != nil {
		return tapError("attach", p.ifindex, err)
	}
	p.filter = f
	return nil
}

// tapError sorts what the kernel answers.
func tapError(doing string, ifindex int, err error) error {
	what := ErrUnsupported
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		what = ErrPermission
	case errors.Is(err, unix.ENODEV), !exists(ifindex):
		what = ErrNoDevice
	}
	return fmt.Errorf("tc: %s: %w: %w", doing, what, err)
}

// Detach takes the program off the tap, at once. Detaching twice, or from a tap that is gone, is no error.
func (p *TapProgram) Detach() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	switch {
	case p.link != nil:
		// Closing alone would leave the moment of detaching to the kernel's work queue.
		if err = p.link.Detach(); errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			err = nil // the tap went first and took the program with it
		}
		err = errors.Join(err, p.link.Close())
	case p.filter != nil:
		err = p.filter.remove()
	}
	p.link, p.filter = nil, nil
	if err != nil {
		return fmt.Errorf("tc: detach: %w", err)
	}
	return nil
}

// Close detaches and frees the program and its own maps; a shared flow map stays open. Closing twice is no error.
func (p *TapProgram) Close() error {
	return errors.Join(p.Detach(), p.prog.Close(), p.outcomes.Close(), p.flows.Close())
}

// Mode returns ModeTCX, ModeClsact, or "" when not attached.
func (p *TapProgram) Mode() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.link != nil:
		return ModeTCX
	case p.filter != nil:
		return ModeClsact
	}
	return ""
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
