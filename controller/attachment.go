package controller

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/controller/state"
)

// attachment is one VM on one uplink: its address, its policy, and the kind of way that it is connected by. What the workers,
// XDP and the flow table know of it is a port, by its index.
type attachment struct {
	tag   string // see survivor
	req   api.AttachRequest
	kind  kind
	idx   uint32 // of its port on the workers
	gen   uint32 // how many VMs had idx before
	addr  datapath.Addr
	up    *uplink
	log   *slog.Logger
	flows *ebpf.Map

	partial     uint64       // partial checksums seen when the last warning was logged
	partialSeen uint64       // and at the last look
	partialAt   time.Time    // when there were more than before
	before      *api.VMStats // counted by a process before this one; nil: by none
	ahead       bool         // built, and it does not run yet
	held        []string     // see packedVM

	kept api.Addresses // canonical; guarded by the controller's lock

	mu      sync.Mutex // what follows is touched by the kind's own goroutines too
	policy  api.Policy
	rates   rates
	running bool // the guest takes frames
}

func (a *attachment) key() bpf.PortKey { return keyOf(a.addr) }

// id is what XDP knows the VM by.
func (a *attachment) id() uint32 { return meta.PortID(a.idx, a.gen) }

// clashes tells whether an address of the VM is the interface's own, as it is now.
func (a *attachment) clashes(f *netdev.Facts) bool {
	return a.has(datapath.Addr{MAC: [macLen]byte(f.MAC)})
}

// setPolicy puts a policy and addresses in force. When it returns, all that was held under the old policy is delivered.
func (a *attachment) setPolicy(p api.Policy, kept api.Addresses) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running {
		if err := a.kind.enforce(a, p); err != nil {
			return fmt.Errorf("policy: %s: %w", a.req.VM, err)
		}
	}
	a.policy = p
	if err := a.readdress(kept); err != nil {
		return fmt.Errorf("policy: %s: %w", a.req.VM, err)
	}
	return nil
}

// setRules gives every worker the rules of a policy for what the guest takes.
func (a *attachment) setRules(p api.Policy) error {
	cfg := portConfig(p, a.kind.features())
	return a.up.each(func(q *queue) error { return q.SetRules(a.idx, cfg) })
}

// saved is the VM as the state file keeps it.
func (a *attachment) saved() state.VM {
	policy, _, _ := a.effective()
	return savedVM(a.req, policy, a.kept)
}

// effective is the profile in force and why.
func (a *attachment) effective() (p api.Policy, profile api.Profile, note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	profile, note = effective(a.policy, a.kind.features(), a.running)
	return a.policy, profile, note
}

// mergesUDP tells whether datagrams are merged, and why not where they are to be.
func (a *attachment) mergesUDP() (merges bool, note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return mergesUDP(a.policy, a.kind.features(), a.running)
}

// describe is a VM's part of a snapshot.
func (a *attachment) describe() (report.VM, error) {
	policy, profile, note := a.effective()
	udp, udpNote := a.mergesUDP()
	vm := report.VM{Index: a.idx, Before: a.before, Port: api.Port{
		VM: a.req.VM, MAC: a.req.MAC, VLAN: a.req.VLAN, Feed: a.kind.feed(),
		Policy: policy, Effective: profile, PolicyNote: note, UDPMerged: udp, UDPNote: udpNote, AllowSpoof: a.req.AllowSpoof, MTU: a.req.MTU, Isolated: policy.Isolate, MACs: a.kept.MACs, IPs: a.kept.IPs,
	}}
	err := a.kind.describe(a, &vm)
	f := a.kind.features()
	vm.Port.Features, vm.Port.FeatureBits = f.Names(), fmt.Sprintf("%#x", uint64(f))
	return vm, err
}
