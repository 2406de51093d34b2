package datapath

import (
	"encoding/binary"
	"net/netip"
)

// Sources are the IP addresses that a VM may send from. They are made once and not changed, so all workers share one.
type Sources struct {
	v4 []prefix4
	v6 []prefix6
}

type prefix4 struct{ net, mask uint32 }

// prefix6 has a prefix in two halves, in host byte order.
type prefix6 struct{ net, mask ip6 }

type ip6 struct{ hi, lo uint64 }

// NewSources makes them of prefixes in canonical form (no bits behind their length, no IPv4 in IPv6).
func NewSources(list []netip.Prefix) *Sources {
	s := &Sources{}
	for _, p := range list {
		if p.Addr().Is4() {
			a := p.Addr().As4()
			s.v4 = append(s.v4, prefix4{binary.BigEndian.Uint32(a[:]), uint32(^uint64(0) << (32 - p.Bits()))})
			continue
		}
		a := p.Addr().As16()
		n := p.Bits()
		s.v6 = append(s.v6, prefix6{readIP6(a[:]), ip6{^uint64(0) << max(0, 64-n), ^uint64(0) << min(64, 128-n)}})
	}
	return s
}

func readIP6(b []byte) ip6 {
	return ip6{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:16])}
}

func (a ip6) unspecified() bool { return a == ip6{} }
func (a ip6) multicast() bool   { return a.hi>>56 == 0xff }
func (a ip6) loopback() bool    { return a == ip6{lo: 1} }

// allows4 reports whether an IPv4 address is one of them. No station's own are, whatever the prefixes say: 0.0.0.0/8, 127/8, and
// from 224 on.
func (s *Sources) allows4(a uint32) bool {
	if top := a >> 24; top == 0 || top == 127 || top >= 224 {
		return false
	}
	for _, p := range s.v4 {
		if a&p.mask == p.net {
			return true
		}
	}
	return false
}

// allows6 reports whether an IPv6 address is one of them. The unspecified, the loopback and group addresses are not.
func (s *Sources) allows6(a ip6) bool {
	if a.unspecified() || a.loopback() || a.multicast() {
		return false
	}
	for _, p := range s.v6 {
		if a.hi&p.mask.hi == p.net.hi && a.lo&p.mask.lo == p.net.lo {
			return true
		}
	}
	return false
}

// linkLocal is the address that a station makes of its MAC address (RFC 4291, appendix A).
func linkLocal(mac [macLen]byte) ip6 {
	return ip6{0xfe80 << 48, uint64(mac[0]^2)<<56 | uint64(mac[1])<<48 | uint64(mac[2])<<40 | 0xfffe<<24 | uint64(mac[3])<<16 | uint64(mac[4])<<8 | uint64(mac[5])}
}
