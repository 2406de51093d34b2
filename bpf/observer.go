package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// ObserverProgramName is the name of the counting TC program as the kernel shows it, for TCX and for clsact.
const ObserverProgramName = RscObserveProgRscObserve

// The two places of the counting program: what is given to a VM leaves the host at the tap's egress, what comes from a wire is
// seen at the uplink's ingress, behind the kernel's GRO.
var (
	observeEgress  = tcHook{name: ObserverProgramName, at: ebpf.AttachTCXEgress, parent: netlink.HANDLE_MIN_EGRESS}
	observeIngress = tcHook{name: ObserverProgramName, at: ebpf.AttachTCXIngress, parent: netlink.HANDLE_MIN_INGRESS}
)

// Side says which of an interface's frames an Observer counts.
type Side int

const (
	Egress  Side = iota // what the host transmits: on a VM's tap, the frames for the VM
	Ingress             // what the host receives
)

func (s Side) hook() tcHook {
	if s == Ingress {
		return observeIngress
	}
	return observeEgress
}

// NumSegmentBins is the number of frame sizes that are told apart, in TCP segments: 1, 2 to 9, 10 to 21, 22 to 44, 45 and more.
const NumSegmentBins = 5

// ObservedTCP counts the TCP frames of one address family. It mirrors struct observed_tcp in abi.h. A frame is bulk when it holds
// two or more segments, or one of at least 1,000 bytes. Frames are counted as TC sees them: one that the interface cannot take
// whole is cut after that.
type ObservedTCP struct {
	Frames       uint64
	Bytes        uint64 // whole frames, from Ethernet on
	DataFrames   uint64 // with payload
	PayloadBytes uint64
	Segments     uint64 // in DataFrames
	BulkTrains   uint64 // runs of bulk frames that go on with one another within 50 us: what could have been one frame
	BulkFrames   [NumSegmentBins]uint64
	BulkSegments [NumSegmentBins]uint64
	BulkBytes    [NumSegmentBins]uint64 // of payload
}

// Observed are the counts of one interface. It mirrors struct observed in abi.h.
type Observed struct {
	TCP         [2]ObservedTCP // IPv4, IPv6
	OtherFrames uint64         // not TCP, or without readable ports
	OtherBytes  uint64
}

// add adds what another CPU counted.
func (o *Observed) add(b *Observed) {
	for i := range o.TCP {
		t, u := &o.TCP[i], &b.TCP[i]
		t.Frames += u.Frames
		t.Bytes += u.Bytes
		t.DataFrames += u.DataFrames
		t.PayloadBytes += u.PayloadBytes
		t.Segments += u.Segments
		t.BulkTrains += u.BulkTrains
		for n := range t.BulkFrames {
			t.BulkFrames[n] += u.BulkFrames[n]
			t.BulkSegments[n] += u.BulkSegments[n]
			t.BulkBytes[n] += u.BulkBytes[n]
		}
	}
	o.OtherFrames += b.OtherFrames
	o.OtherBytes += b.OtherBytes
}

// ErrNoTCX: the kernel has no TCX (Linux 6.6), and the caller wanted nothing that outlives it.
var ErrNoTCX = errors.New("the kernel has no TCX (Linux 6.6)")

// Observer counts what interfaces are given, and changes nothing. Its methods may be called from any goroutine.
type Observer struct {
	prog           *ebpf.Program
	counts, trains *ebpf.Map

	mu sync.Mutex // of what follows
	on []*tcAttachment
}

// LoadObserver loads the program, for at most so many interfaces. It does not attach. Errors: ErrPermission, ErrUnsupported.
func LoadObserver(interfaces int) (*Observer, error) {
	spec, err := LoadRscObserve()
	if err != nil {
		return nil, fmt.Errorf("observe: object: %w", err)
	}
	spec.Maps[RscObserveMapCounts].MaxEntries = uint32(max(1, interfaces))
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, loadError("observe", err)
	}
	o := &Observer{
		prog:   coll.DetachProgram(RscObserveProgRscObserve),
		counts: coll.DetachMap(RscObserveMapCounts), trains: coll.DetachMap(RscObserveMapTrains),
	}
	coll.Close()
	return o, nil
}

// Attach begins to count on one side of an interface, in the network namespace of the calling thread, and says how it hangs there.
// TCX is taken where the kernel has it. Otherwise a filter under clsact, which stays when the process is killed, or with tcxOnly
// ErrNoTCX. Errors: ErrUnsupported, ErrPermission, ErrNoDevice.
func (o *Observer) Attach(ifindex int, side Side, tcxOnly bool) (mode string, err error) {
	if !tcxOnly {
		return o.attachBy(side.hook().attach, ifindex)
	}
	mode, err = o.attachBy(side.hook().attachTCX, ifindex)
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = fmt.Errorf("tc: attach: %w", ErrNoTCX)
	}
	return mode, err
}

func (o *Observer) attachBy(attach func(int, *ebpf.Program) (*tcAttachment, error), ifindex int) (mode string, err error) {
	zero := make([]Observed, ebpf.MustPossibleCPU())
	if err := o.counts.Put(uint32(ifindex), zero); err != nil {
		return "", fmt.Errorf("observe: counters: %w", err)
	}
	a, err := attach(ifindex, o.prog)
	if err != nil {
		return "", err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.on = append(o.on, a)
	return a.mode(), nil
}

// Counts returns what was counted on an interface since it was attached. It can be read until Close, whether the interface is still
// there or not.
func (o *Observer) Counts(ifindex int) (sum Observed, err error) {
	var perCPU []Observed
	if err := o.counts.Lookup(uint32(ifindex), &perCPU); err != nil {
		return sum, fmt.Errorf("observe: counters: %w", err)
	}
	for i := range perCPU {
		sum.add(&perCPU[i])
	}
	return sum, nil
}

// Detach takes the program off every interface. Detaching twice, or from one that is gone, is no error.
func (o *Observer) Detach() (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.on {
		err = errors.Join(err, a.detach())
	}
	o.on = nil
	return err
}

// Close detaches and frees the program and its maps. Closing twice is no error.
func (o *Observer) Close() error {
	return errors.Join(o.Detach(), o.prog.Close(), o.counts.Close(), o.trains.Close())
}

// RemoveStaleObserver removes what a process that was killed left on an interface, as RemoveStaleTap does. It would also take
// away the filters of an observer that runs.
func RemoveStaleObserver(ifindex int) error {
	return errors.Join(observeEgress.removeStale(ifindex), observeIngress.removeStale(ifindex))
}

// TapCounted tells whether a controller's TapProgram hangs on a tap: the VM is attached, and what it is given is the controller's
// doing. Where that cannot be asked the answer is no.
func TapCounted(ifindex int) bool { return tapHook.hangs(ifindex) }
