package observe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/netdev"
)

// Errors to test for with errors.Is.
var (
	ErrNothing = errors.New("nothing to observe")
	ErrKind    = errors.New("no interface that can be observed")
)

// target is an interface that is to be counted.
type target struct {
	name, bridge string
	index        int
	kind         Kind
	noVnetHdr    bool
}

func (t *target) side() bpf.Side {
	if t.kind == Tap {
		return bpf.Egress
	}
	return bpf.Ingress
}

// find lists what is to be observed, in the namespace of the calling thread: the interfaces with these names, or without names all
// taps that somebody has open, and with uplinks those of their bridges too.
func find(names []string, uplinks bool) ([]target, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	byName, byIndex := map[string]netlink.Link{}, map[int]string{}
	for _, l := range links {
		byName[l.Attrs().Name], byIndex[l.Attrs().Index] = l, l.Attrs().Name
	}
	if len(names) > 0 {
		return findNamed(names, byName, byIndex)
	}
	var out []target
	bridges := map[int]bool{}
	for _, l := range links {
		if a := l.Attrs(); isTap(l) && a.RawFlags&unix.IFF_LOWER_UP != 0 { // somebody has it open
			out = append(out, newTarget(l, byIndex))
			if a.MasterIndex != 0 {
				bridges[a.MasterIndex] = true
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no VM has a tap open in this network namespace: name interfaces, or run it in theirs ('nsenter --net=/proc/PID/ns/net rscctl observe')", ErrNothing)
	}
	for _, l := range links {
		if uplinks && bridges[l.Attrs().MasterIndex] && !isTun(l) {
			out = append(out, newTarget(l, byIndex))
		}
	}
	return out, nil
}

func findNamed(names []string, byName map[string]netlink.Link, byIndex map[int]string) ([]target, error) {
	var out []target
	for _, name := range names {
		l := byName[name]
		switch {
		case l == nil:
			return nil, fmt.Errorf("%s: %w: 'ip link' lists them", name, netdev.ErrNoDevice)
		case l.Type() == "bridge":
			return nil, fmt.Errorf("%s: %w: it is a bridge: name its ports, as 'bridge link' lists them", name, ErrKind)
		case isTun(l) && !isTap(l):
			return nil, fmt.Errorf("%s: %w: it is a tun, and carries no Ethernet frames: name a tap", name, ErrKind)
		}
		if t := newTarget(l, byIndex); !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out, nil
}

func newTarget(l netlink.Link, byIndex map[int]string) target {
	a := l.Attrs()
	t := target{name: a.Name, index: a.Index, kind: Uplink, bridge: byIndex[a.MasterIndex]}
	if isTap(l) {
		t.kind, t.noVnetHdr = Tap, l.(*netlink.Tuntap).Flags&netlink.TUNTAP_VNET_HDR == 0
	}
	return t
}

func isTun(l netlink.Link) bool {
	_, ok := l.(*netlink.Tuntap)
	return ok
}

func isTap(l netlink.Link) bool {
	return isTun(l) && l.(*netlink.Tuntap).Mode == netlink.TUNTAP_MODE_TAP
}

// groOff finds the interfaces whose GRO is off: uplinks of the targets by their own name, and the uplinks of taps by the bridge's.
func groOff(h *netdev.Handle, targets []target) (map[string][]string, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	names, wanted, out := map[int]string{}, map[string]bool{}, map[string][]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, t := range targets {
		if t.kind == Uplink {
			wanted[t.name] = true
		} else if t.bridge != "" {
			wanted[t.bridge] = true
		}
	}
	for _, l := range links {
		a := l.Attrs()
		bridge := names[a.MasterIndex]
		if isTun(l) || !wanted[a.Name] && !wanted[bridge] {
			continue
		}
		if on, _, err := h.Offload(a.Name, "rx-gro"); err != nil || on {
			continue // of what cannot be asked nothing is said
		}
		for _, key := range []string{a.Name, bridge} {
			if wanted[key] {
				out[key] = append(out[key], a.Name)
			}
		}
	}
	return out, nil
}
