package state

import (
	"encoding/json"
	"fmt"
)

// Schema is the version of state.json's form. It has nothing to do with the version of what the product prints.
const Schema = 2

// State is the list of attached VMs by interface.
type State struct {
	Interfaces    []Interface `json:"interfaces"`
	DefaultPolicy *Policy     `json:"default_policy,omitempty"` // of VMs that are attached later; nil: the product's
}

// Interface is an uplink and the VMs on it.
type Interface struct {
	Name string `json:"name"`
	VMs  []VM   `json:"vms"`
}

// VM is one attached VM: all that attaching it again needs. Exactly one of VhostUser and Tap is set.
type VM struct {
	Name        string     `json:"name"`
	MAC         string     `json:"mac"`
	VLAN        int        `json:"vlan,omitempty"` // 1 to 4094; 0: untagged
	VhostUser   *VhostUser `json:"vhost_user,omitempty"`
	Tap         *Tap       `json:"tap,omitempty"`
	FixOffloads bool       `json:"fix_offloads,omitempty"`
	Policy      Policy     `json:"policy"`
	MACs        []string   `json:"macs,omitempty"` // beside MAC
	IPs         []string   `json:"ips,omitempty"`  // the VM is kept to these; none: to nothing
	// The interface's XDP program is somebody else's: the path of its map of sockets, and the queues that it has for us. "": it is ours.
	XSKMap string   `json:"xsk_map,omitempty"`
	Queues []uint16 `json:"queues,omitempty"`
}

// VhostUser is the Unix socket of a vhost-user port.
type VhostUser struct {
	Socket     string `json:"socket"`
	Connect    bool   `json:"connect,omitempty"` // we dial; otherwise we listen
	Mode       string `json:"mode,omitempty"`    // octal; "": the default
	Owner      string `json:"owner,omitempty"`   // USER:GROUP; "": unchanged
	AllowSpoof bool   `json:"allow_spoof,omitempty"`
	AnyMemory  bool   `json:"any_memory,omitempty"`
	MTU        int    `json:"mtu,omitempty"`     // 0: the interface's
	Isolate    bool   `json:"isolate,omitempty"` // as Policy.Isolate, for versions that look for it here
}

// Tap is the VM's own tap.
type Tap struct {
	Device        string `json:"device,omitempty"` // as last proved; "": Domain knows
	Domain        string `json:"domain,omitempty"` // the VM's libvirt domain
	Trust         bool   `json:"trust,omitempty"`  // that the tap is the VM's is the operator's word
	BypassFilters bool   `json:"bypass_filters,omitempty"`
}

// Policy is the policy in force, every field of it: what a later version's defaults are does not change it.
type Policy struct {
	Coalesce     bool     `json:"coalesce"`
	IPv4         bool     `json:"ipv4"`
	IPv6         bool     `json:"ipv6"`
	UDP          bool     `json:"udp,omitempty"`
	Profile      string   `json:"profile"`
	HoldNS       int64    `json:"hold_ns"`
	AdaptiveNS   int64    `json:"hold_adaptive_ns,omitempty"` // the hold adapts, up to this; HoldNS is for versions that cannot. 0: it is fixed
	MaxBytes     int      `json:"max_bytes"`
	MaxSegments  int      `json:"max_segments"` // 0: no limit
	ExcludePorts []uint16 `json:"exclude_ports"`
	Isolate      bool     `json:"isolate,omitempty"`
	NoHost       bool     `json:"no_host,omitempty"`  // the host is no neighbour
	RateTx       uint64   `json:"rate_tx,omitempty"`  // bits a second; 0: any
	BurstTx      uint64   `json:"burst_tx,omitempty"` // bytes; 0: as the rate has it
	RateRx       uint64   `json:"rate_rx,omitempty"`
	BurstRx      uint64   `json:"burst_rx,omitempty"`
}

// file is state.json as a whole.
type file struct {
	Schema int `json:"schema"`
	State
}

func encode(s State) ([]byte, error) {
	b, err := json.MarshalIndent(file{Schema: Schema, State: s}, "", "  ")
	return append(b, '\n'), err
}

// decode reads state.json of this version and of every version before it. The errors are ErrNewer and ErrDamaged.
func decode(b []byte) (State, error) {
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var s State
	var err error
	switch {
	case head.Schema > Schema:
		return State{}, fmt.Errorf("schema %d, want %d at most: %w", head.Schema, Schema, ErrNewer)
	case head.Schema == Schema:
		var f file
		err = json.Unmarshal(b, &f)
		s = f.State
	case head.Schema == 1:
		s, err = decodeV1(b)
	default:
		return State{}, fmt.Errorf("schema %d: %w", head.Schema, ErrDamaged)
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return s, nil
}

// check finds what no controller can have written. Whether the host still agrees is found out when a VM is attached again.
func (s State) check() error {
	vms := map[string]bool{}
	ifaces := map[string]bool{}
	for _, i := range s.Interfaces {
		if i.Name == "" || ifaces[i.Name] {
			return fmt.Errorf("interface %q: no name, or named twice", i.Name)
		}
		ifaces[i.Name] = true
		for _, v := range i.VMs {
			switch {
			case v.Name == "" || vms[v.Name]:
				return fmt.Errorf("interface %s: VM %q: no name, or named twice", i.Name, v.Name)
			case (v.VhostUser == nil) == (v.Tap == nil):
				return fmt.Errorf("VM %s: needs one of vhost_user and tap", v.Name)
			}
			vms[v.Name] = true
		}
	}
	return nil
}
