// Package apply brings a controller's VMs to what a file says, and writes such a file. It talks to the controller as any client
// does, and finds out what is to be done before it does anything.
package apply

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/rscctl/rscctl/controller/api"
)

// ErrFile is returned for a file that cannot be right, whatever the host looks like.
var ErrFile = errors.New("wrong description")

// Version is that of the file's form.
const Version = 1

// File is the described state: YAML, or JSON, which is YAML too.
type File struct {
	Version       int     `yaml:"version"`
	DefaultPolicy *Policy `yaml:"default-policy,omitempty"` // of VMs of which nothing else is said; nil: as the controller has it
	VMs           []VM    `yaml:"vms"`
}

// VM is one VM. The names are those of attach's flags.
type VM struct {
	Name          string    `yaml:"name"`
	Iface         string    `yaml:"iface"`
	MAC           string    `yaml:"mac"`
	VLAN          int       `yaml:"vlan,omitempty"`
	VhostUser     string    `yaml:"vhost-user,omitempty"`
	Connect       bool      `yaml:"connect,omitempty"`
	Tap           string    `yaml:"tap,omitempty"`
	Domain        string    `yaml:"domain,omitempty"`
	TrustTap      bool      `yaml:"trust-tap,omitempty"`
	BypassFilters bool      `yaml:"bypass-filters,omitempty"`
	MTU           int       `yaml:"mtu,omitempty"`
	AllowSpoof    bool      `yaml:"allow-spoof,omitempty"`
	Isolate       bool      `yaml:"isolate,omitempty"` // as Policy.Isolate, which knows false too
	AnyMemory     bool      `yaml:"any-memory,omitempty"`
	FixOffloads   bool      `yaml:"fix-offloads,omitempty"`
	SocketMode    string    `yaml:"socket-mode,omitempty"`
	SocketOwner   string    `yaml:"socket-owner,omitempty"`
	XSKMap        string    `yaml:"xsk-map,omitempty"`    // of somebody else's XDP program
	Queues        []uint16  `yaml:"queue,omitempty,flow"` // whose sockets go into it
	MACs          *[]string `yaml:"macs,omitempty,flow"`  // beside mac
	IPs           *[]string `yaml:"ips,omitempty,flow"`   // the VM may send from these alone; none: from any
	further       []string  // canonical, check's
	Policy        Policy    `yaml:"policy,omitempty"`
}

// Policy has the names of the policy flags. What is nil is the controller's default.
type Policy struct {
	Coalesce     *bool        `yaml:"coalesce,omitempty"`
	IPv4         *bool        `yaml:"ipv4,omitempty"`
	IPv6         *bool        `yaml:"ipv6,omitempty"`
	UDP          *bool        `yaml:"udp,omitempty"`
	Profile      *api.Profile `yaml:"profile,omitempty"`
	Hold         *Hold        `yaml:"hold,omitempty"`
	MaxBytes     *int         `yaml:"max-bytes,omitempty"`
	MaxSegments  *int         `yaml:"max-segments,omitempty"`
	ExcludePorts *[]uint16    `yaml:"exclude-ports,omitempty,flow"`
	Isolate      *bool        `yaml:"isolate,omitempty"`
	Host         *bool        `yaml:"host,omitempty"`
	RateTx       *Rate        `yaml:"rate-tx,omitempty"`
	RateRx       *Rate        `yaml:"rate-rx,omitempty"`
}

// Hold is what the flag takes: adaptive, adaptive:1ms, 50us, 0.
type Hold struct {
	Longest time.Duration
	Adapts  bool
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (h *Hold) UnmarshalYAML(n *yaml.Node) error {
	var err error
	if h.Longest, h.Adapts, err = api.ParseHold(n.Value); err != nil {
		return fmt.Errorf("line %d: hold: %s: not a duration: say for example 50us, 1ms or 0, or adaptive, adaptive:1ms", n.Line, shown(n.Value))
	}
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (h Hold) MarshalYAML() (any, error) { return api.HoldText(h.Longest, h.Adapts), nil }

// Read reads and checks a file. The error is ErrFile, or the reader's.
func Read(r io.Reader) (*File, error) {
	d := yaml.NewDecoder(r)
	d.KnownFields(true)
	var f File
	if err := d.Decode(&f); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it is empty", ErrFile)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, readable(err))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the first document", ErrFile)
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	return &f, nil
}

// Write writes a file that Read takes.
func (f *File) Write(w io.Writer) error {
	var text bytes.Buffer // the package says twice, in its own words, what w fails with
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(f), e.Close()); err != nil {
		return err
	}
	_, err := w.Write(text.Bytes())
	return err
}

// WriteJSON writes the same as JSON, under the same names.
func (f *File) WriteJSON(w io.Writer) error {
	var doc any
	text, err := yaml.Marshal(f)
	if err == nil {
		err = yaml.Unmarshal(text, &doc)
	}
	if err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}

// check finds what contradicts itself. What contradicts the host, the controller says.
func (f *File) check() error {
	if f.Version != Version {
		return fmt.Errorf("version %d: this rscctl reads version %d", f.Version, Version)
	}
	if f.DefaultPolicy != nil {
		if err := f.DefaultPolicy.check(); err != nil {
			return fmt.Errorf("default-policy: %w", err)
		}
	}
	taken := map[string]string{} // what no two VMs may have, and who has it
	for i := range f.VMs {
		v := &f.VMs[i]
		if v.Name == "" {
			return fmt.Errorf("the VM at place %d has no name", i+1)
		}
		if err := v.check(); err != nil {
			return fmt.Errorf("VM %s: %w", v.Name, err)
		}
		claims := []string{"name " + v.Name, fmt.Sprintf("address %s in VLAN %d of %s", v.MAC, v.VLAN, v.Iface)}
		for _, mac := range v.further {
			claims = append(claims, fmt.Sprintf("address %s in VLAN %d of %s", mac, v.VLAN, v.Iface))
		}
		for what, which := range map[string]string{"socket": v.VhostUser, "tap": v.Tap} { // a domain may have several taps
			if which != "" {
				claims = append(claims, what+" "+which)
			}
		}
		for _, c := range claims {
			if other, ok := taken[c]; ok && other == v.Name {
				return fmt.Errorf("VM %s is described twice: describe it once", v.Name)
			} else if ok {
				return fmt.Errorf("VMs %s and %s: both have %s", other, v.Name, c)
			}
			taken[c] = v.Name
		}
	}
	return nil
}

func (v *VM) check() error {
	mac, err := net.ParseMAC(v.MAC)
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("mac %q: use six bytes like 52:54:00:12:34:56", v.MAC)
	}
	v.MAC = mac.String()
	switch {
	case v.Iface == "":
		return errors.New("iface: name the interface")
	case v.VLAN < 0 || v.VLAN > 4094:
		return fmt.Errorf("vlan %d: use 1 to 4094", v.VLAN)
	case v.VhostUser == "" && v.Tap == "" && v.Domain == "":
		return errors.New("give one of vhost-user, tap and domain")
	case v.VhostUser != "" && (v.Tap != "" || v.Domain != ""):
		return errors.New("vhost-user and a tap: give one of them")
	case (v.XSKMap == "") != (len(v.Queues) == 0):
		return errors.New("xsk-map and queue: give both, or none")
	case v.XSKMap != "" && v.VhostUser == "":
		return errors.New("xsk-map: give vhost-user with it: a tap needs rscctl's own XDP program")
	}
	kept, err := api.Addresses{}.With(v.MACs, v.IPs).Canonical(v.MAC)
	if err != nil {
		return err
	}
	v.further = kept.MACs
	return v.Policy.check()
}

func (p *Policy) check() error { return p.patch().Over(api.BuiltinPolicy()).Check() }

// request attaches the VM with the policy that it has, the defaults filled in.
func (v *VM) request(defaults api.Policy) api.AttachRequest {
	req := v.Request()
	req.Policy = req.Policy.Over(defaults).Patch()
	if req.MACs == nil {
		req.MACs = &[]string{}
	}
	if req.IPs == nil {
		req.IPs = &[]string{}
	}
	return req
}

// Request attaches the VM. Of its policy it says what the description says, and leaves the rest as the controller has it.
func (v *VM) Request() api.AttachRequest {
	policy := v.Policy.patch()
	if v.Isolate && policy.Isolate == nil {
		policy.Isolate = &v.Isolate
	}
	return api.AttachRequest{
		VM: v.Name, Iface: v.Iface, MAC: v.MAC, VLAN: v.VLAN, VhostUser: v.VhostUser, Connect: v.Connect, Tap: v.Tap, Domain: v.Domain,
		TrustTap: v.TrustTap, Bypass: v.BypassFilters, AllowSpoof: v.AllowSpoof, AnyMemory: v.AnyMemory, MTU: v.MTU,
		FixOffloads: v.FixOffloads, SocketMode: v.SocketMode, SocketOwner: v.SocketOwner, MACs: v.MACs, IPs: v.IPs, Policy: policy,
		XSKMap: v.XSKMap, Queues: v.Queues,
	}
}

// patch is the policy as the controller takes it.
func (p *Policy) patch() api.PolicyPatch {
	out := api.PolicyPatch{
		Coalesce: p.Coalesce, IPv4: p.IPv4, IPv6: p.IPv6, UDP: p.UDP, Profile: p.Profile, MaxBytes: p.MaxBytes, MaxSegments: p.MaxSegments, ExcludePorts: p.ExcludePorts,
		Isolate: p.Isolate, Host: p.Host,
	}
	out.RateTx, out.BurstTx = p.RateTx.patch()
	out.RateRx, out.BurstRx = p.RateRx.patch()
	if p.Hold != nil {
		ns := p.Hold.Longest.Nanoseconds()
		out.HoldNS, out.HoldAdaptive = &ns, &p.Hold.Adapts
	}
	return out
}

// Export is the file that describes what a controller has, without what is the default.
func Export(c *api.Config) *File {
	f := &File{Version: Version, VMs: []VM{}}
	if len(c.DefaultPolicy.Differences(api.BuiltinPolicy())) > 0 {
		p := beside(c.DefaultPolicy, api.BuiltinPolicy())
		f.DefaultPolicy = &p
	}
	for i := range c.VMs {
		r := &c.VMs[i]
		f.VMs = append(f.VMs, VM{
			Name: r.VM, Iface: r.Iface, MAC: r.MAC, VLAN: r.VLAN, VhostUser: r.VhostUser, Connect: r.Connect, Tap: r.Tap, Domain: r.Domain,
			TrustTap: r.TrustTap, BypassFilters: r.Bypass, AllowSpoof: r.AllowSpoof, AnyMemory: r.AnyMemory, MTU: r.MTU,
			FixOffloads: r.FixOffloads, SocketMode: r.SocketMode, SocketOwner: r.SocketOwner, XSKMap: r.XSKMap, Queues: r.Queues, MACs: some(r.MACs), IPs: some(r.IPs), Policy: beside(r.Policy.Over(c.DefaultPolicy), c.DefaultPolicy),
		})
	}
	slices.SortFunc(f.VMs, func(a, b VM) int { return cmp.Or(cmp.Compare(a.Iface, b.Iface), cmp.Compare(a.Name, b.Name)) })
	return f
}

// some is a list that has something in it, or nil.
func some(list *[]string) *[]string {
	if list == nil || len(*list) == 0 {
		return nil
	}
	return list
}

// beside is what p has beside the defaults.
func beside(p, defaults api.Policy) (out Policy) {
	holdOf := func(p api.Policy) Hold { return Hold{time.Duration(p.HoldNS), p.HoldAdaptive} }
	hold := holdOf(p)
	differs(&out.Coalesce, &p.Coalesce, defaults.Coalesce)
	differs(&out.IPv4, &p.IPv4, defaults.IPv4)
	differs(&out.IPv6, &p.IPv6, defaults.IPv6)
	differs(&out.UDP, &p.UDP, defaults.UDP)
	differs(&out.Profile, &p.Profile, defaults.Profile)
	differs(&out.Hold, &hold, holdOf(defaults))
	differs(&out.MaxBytes, &p.MaxBytes, defaults.MaxBytes)
	differs(&out.MaxSegments, &p.MaxSegments, defaults.MaxSegments)
	differs(&out.Isolate, &p.Isolate, defaults.Isolate)
	differs(&out.Host, &p.Host, defaults.Host)
	differs(&out.RateTx, &Rate{p.RateTx, p.BurstTx}, Rate{defaults.RateTx, defaults.BurstTx})
	differs(&out.RateRx, &Rate{p.RateRx, p.BurstRx}, Rate{defaults.RateRx, defaults.BurstRx})
	if !slices.Equal(p.ExcludePorts, defaults.ExcludePorts) {
		out.ExcludePorts = &p.ExcludePorts
	}
	return out
}

func differs[T comparable](to **T, v *T, from T) {
	if *v != from {
		*to = v
	}
}
