package api

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// What a VM may have: addresses and networks that it is kept to, MAC addresses beside its first.
const (
	MaxIPs  = 64
	MaxMACs = 15
)

// ParseIPs reads the addresses that a VM is kept to: each an address or a network (10.0.0.5, 10.0.8.0/24, 2001:db8::5), in order and
// each once. Addresses that no station may send from, and a network with bits behind its length, are refused: whoever copies an
// interface's 10.0.0.5/24 would open all of 10.0.0.0/24.
func ParseIPs(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := parseIP(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	out = slices.Compact(out)
	if len(out) > MaxIPs {
		return nil, fmt.Errorf("ip: %d addresses: at most %d: name a network, such as 10.0.8.0/24", len(out), MaxIPs)
	}
	return out, nil
}

func parseIP(s string) (netip.Prefix, error) {
	a, err := netip.ParseAddr(s)
	p := netip.Prefix{}
	if err == nil {
		p = netip.PrefixFrom(a, a.BitLen())
	} else if p, err = netip.ParsePrefix(s); err == nil {
		a = p.Addr()
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("ip %q: no address: say for example 10.0.0.5, 10.0.8.0/24 or 2001:db8::5", s)
	case a.Zone() != "" || a.Is4In6():
		return p, fmt.Errorf("ip %s: say it without a zone, and an IPv4 address as 10.0.0.5", s)
	case p.Masked() != p:
		return p, fmt.Errorf("ip %s: it has bits behind its length: say %s for the address, or %s for the network", s, a, p.Masked())
	case p.IsSingleIP() && (a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})):
		return p, fmt.Errorf("ip %s: no station sends from it: name the VM's own address", s)
	}
	return p, nil
}

// IPTexts writes addresses as ParseIPs reads them, the shorter way. It never returns nil.
func IPTexts(list []netip.Prefix) []string {
	out := []string{}
	for _, p := range list {
		if p.IsSingleIP() {
			out = append(out, p.Addr().String())
		} else {
			out = append(out, p.String())
		}
	}
	return out
}

// Addresses are what a VM is known by and kept to, beside the MAC address that it is attached with. They are no part of its policy:
// they are never another VM's, so they have no default, and a policy that is reset or copied leaves them alone.
type Addresses struct {
	MACs []string // beside the one that it is attached with, as ParseMACs reads them
	IPs  []string // as ParseIPs reads them; none: any address
}

// With is base with what is said: nil says nothing, an empty list says none.
func (base Addresses) With(macs, ips *[]string) Addresses {
	if macs != nil {
		base.MACs = append([]string{}, *macs...)
	}
	if ips != nil {
		base.IPs = append([]string{}, *ips...)
	}
	return base
}

// Canonical checks the addresses of a VM that is attached with one, mac, and writes each in one way. mac need not be named, and may.
func (a Addresses) Canonical(mac string) (Addresses, error) {
	ips, err := ParseIPs(a.IPs)
	if err != nil {
		return a, err
	}
	macs, err := ParseMACs(a.MACs)
	if err != nil {
		return a, err
	}
	if own, err := net.ParseMAC(mac); err == nil {
		macs = slices.DeleteFunc(macs, func(m [6]byte) bool { return bytes.Equal(m[:], own) })
	}
	return Addresses{MACs: MACTexts(macs), IPs: IPTexts(ips)}, nil
}

// ParseMACs reads the further MAC addresses of a VM, in order and each once.
func ParseMACs(list []string) (out [][6]byte, err error) {
	for _, s := range list {
		m, err := net.ParseMAC(s)
		switch {
		case err != nil || len(m) != 6:
			return nil, fmt.Errorf("mac %q: not a MAC address: say six bytes like 52:54:00:12:34:56", s)
		case m[0]&1 != 0 || bytes.Equal(m, make([]byte, 6)):
			return nil, fmt.Errorf("mac %s: a VM's address is a unicast one", s)
		}
		out = append(out, [6]byte(m))
	}
	slices.SortFunc(out, func(a, b [6]byte) int { return bytes.Compare(a[:], b[:]) })
	if out = slices.Compact(out); len(out) > MaxMACs {
		return nil, fmt.Errorf("mac: %d addresses: at most %d beside the VM's own", len(out), MaxMACs)
	}
	return out, nil
}

// MACTexts writes MAC addresses as they are typed. It never returns nil.
func MACTexts(list [][6]byte) []string {
	out := []string{}
	for _, m := range list {
		out = append(out, net.HardwareAddr(m[:]).String())
	}
	return out
}

// Differences are the addresses that want has otherwise, each "name: was -> will be" with the name of the flag. Both are canonical.
func (a Addresses) Differences(want Addresses) []string {
	list := func(l []string) string { return strings.Join(l, ",") }
	return changes([]change{{"further macs", list(a.MACs), list(want.MACs)}, {"ip", list(a.IPs), list(want.IPs)}})
}
