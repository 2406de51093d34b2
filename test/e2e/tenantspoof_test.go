package e2e

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// The wire, the host and a VM beside him hear of a tenant what is his, each of it once, DHCP and duplicate address detection among that, and nothing of what he
// claims to be, however he dresses it.
func TestATenantWhoSpoofsAllHeCan(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	a := r.boot(stackguest.Config{Socket: r.attach("a", macA, "--ip", "10.77.0.10,fd00::10"), MAC: mac(t, macA)}, "10.77.0.10/24")
	b := r.boot(stackguest.Config{Socket: r.attach("b", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	ears := map[string]*netnstest.Capture{"the wire": r.net.A.Capture(t), "the host": r.net.B.Capture(t), "the VM beside": b.side.Capture(t)}
	his, others := tenantsFrames(mac(t, macA), mac(t, macB))
	mark := func(name string) []byte { return []byte("<" + name + ">") }
	for _, all := range []map[string][]byte{others, his} {
		for name, f := range all {
			f = append(f, make([]byte, max(0, 60-len(f)))...) // behind what a receiver reads
			a.side.Inject(t, append(f, mark(name)...))
		}
	}
	for who, c := range ears {
		heard := map[string]int{}
		for _, f := range c.Drain(netnstest.Patience(300 * time.Millisecond)) {
			for _, all := range []map[string][]byte{others, his} {
				for name := range all {
					if bytes.Contains(f.Data, mark(name)) {
						heard[name]++
					}
				}
			}
		}
		for name := range his {
			if heard[name] != 1 {
				t.Errorf("%s heard %q %d times", who, name, heard[name])
			}
		}
		for name := range others {
			if heard[name] != 0 {
				t.Errorf("%s heard %q", who, name)
			}
		}
	}
	refused := 0
	for _, n := range r.statsOf("a").TxDropped {
		refused += int(n)
	}
	if refused < len(others) {
		t.Errorf("%d frames are counted as refused, of %d", refused, len(others))
	}
}

// tenantsFrames are frames to all of a VM that is kept to 10.77.0.10 and fd00::10, by what they are: those that it may send, and those that it may not.
func tenantsFrames(src, other net.HardwareAddr) (his, others map[string][]byte) {
	addr := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	be := binary.BigEndian.AppendUint16
	ether := func(kind uint16, parts ...[]byte) []byte {
		return netnstest.Ethernet(net.HardwareAddr{255, 255, 255, 255, 255, 255}, src, kind, slices.Concat(parts...))
	}
	ip4 := func(proto byte, from, to string, fragment uint16, body []byte) []byte {
		return slices.Concat(be([]byte{0x45, 0}, uint16(20+len(body))), be([]byte{0, 1}, fragment), []byte{64, proto, 0, 0}, addr(from), addr(to), body)
	}
	ip6 := func(next byte, from string, body ...[]byte) []byte {
		b := slices.Concat(body...)
		return slices.Concat(be([]byte{0x60, 0, 0, 0}, uint16(len(b))), []byte{next, 255}, addr(from), addr("ff02::1"), b)
	}
	udp := func(from, to uint16) []byte { return be(be(be(be(nil, from), to), 8), 0) }
	arp := func(op byte, mac []byte, from, to string) []byte {
		return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac, addr(from), make([]byte, 6), addr(to))
	}
	rarp := func(mac []byte) []byte {
		return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 3}, src, make([]byte, 4), mac, make([]byte, 4))
	}
	nd := func(kind byte, target string, options ...byte) []byte {
		return slices.Concat([]byte{kind, 0, 0, 0, 0x20, 0, 0, 0}, addr(target), options)
	}
	link := func(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }
	ra := append([]byte{134, 0, 0, 0, 64, 0, 7, 8}, make([]byte, 8)...)
	const own4, foreign4, all4 = "10.77.0.10", "10.77.0.1", "255.255.255.255"
	const own6, foreign6, local = "fd00::10", "fd00::1", "fe80::5054:ff:fe00:a"
	own, foreign := ip4(253, own4, all4, 0, nil), ip4(253, foreign4, all4, 0, nil)
	his = map[string][]byte{
		"IPv4":                   ether(0x0800, own),
		"IPv4, a priority tag":   ether(0x8100, []byte{0x60, 0, 8, 0}, own),
		"IPv4, a later fragment": ether(0x0800, ip4(253, own4, all4, 1, make([]byte, 8))),
		"DHCP":                   ether(0x0800, ip4(17, "0.0.0.0", all4, 0, udp(68, 67))),
		"ARP":                    ether(0x0806, arp(1, src, own4, foreign4)),
		"ARP, a probe":           ether(0x0806, arp(1, src, "0.0.0.0", own4)),
		"ARP, gratuitous":        ether(0x0806, arp(1, src, own4, own4)),
		"RARP":                   ether(0x8035, rarp(src)),
		"DAD":                    ether(0x86dd, ip6(58, "::", nd(135, own6))),
		"DAD of link-local":      ether(0x86dd, ip6(58, "::", nd(135, local))),
		"ND":                     ether(0x86dd, ip6(58, own6, nd(135, foreign6, link(1, src)...))),
		"ND, an advertisement":   ether(0x86dd, ip6(58, own6, nd(136, own6, link(2, src)...))),
		"DHCPv6":                 ether(0x86dd, ip6(17, local, udp(546, 547))),
	}
	others = map[string][]byte{
		"IPv4":                           ether(0x0800, foreign),
		"IPv4, a later fragment":         ether(0x0800, ip4(253, foreign4, all4, 1, make([]byte, 8))),
		"IPv4, a priority tag":           ether(0x8100, []byte{0x60, 0, 8, 0}, foreign),
		"IPv4, two priority tags":        ether(0x8100, []byte{0, 0, 0x81, 0, 0, 0, 8, 0}, own),
		"IPv4, a tag":                    ether(0x8100, []byte{0, 7, 8, 0}, own),
		"IPv4, an S-tag":                 ether(0x88a8, []byte{0, 7, 8, 0}, own),
		"IPv4, SNAP":                     ether(46, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, own),
		"DHCP server":                    ether(0x0800, ip4(17, own4, all4, 0, udp(67, 68))),
		"DHCP server, another port":      ether(0x0800, ip4(17, own4, all4, 0, udp(4444, 68))),
		"DHCP server, a fragment":        ether(0x0800, ip4(17, own4, all4, 0x2000, udp(67, 68))),
		"DHCP server, a short fragment":  ether(0x0800, ip4(17, own4, all4, 0x2000, udp(67, 68)[:4])),
		"DHCP, not to all":               ether(0x0800, ip4(17, "0.0.0.0", foreign4, 0, udp(68, 67))),
		"ARP":                            ether(0x0806, arp(1, src, foreign4, own4)),
		"ARP, an answer":                 ether(0x0806, arp(2, src, foreign4, own4)),
		"ARP, gratuitous":                ether(0x0806, arp(1, src, foreign4, foreign4)),
		"ARP, a probe":                   ether(0x0806, arp(1, src, "0.0.0.0", foreign4)),
		"ARP, another's hardware":        ether(0x0806, arp(1, other, own4, foreign4)),
		"RARP":                           ether(0x8035, rarp(other)),
		"DAD":                            ether(0x86dd, ip6(58, "::", nd(135, foreign6))),
		"ND":                             ether(0x86dd, ip6(58, foreign6, nd(135, own6, link(1, src)...))),
		"ND, another's hardware":         ether(0x86dd, ip6(58, own6, nd(135, foreign6, link(1, other)...))),
		"ND, an advertisement":           ether(0x86dd, ip6(58, own6, nd(136, foreign6, link(2, src)...))),
		"router":                         ether(0x86dd, ip6(58, local, ra)),
		"router, behind an option":       ether(0x86dd, ip6(0, local, []byte{58, 0, 1, 4, 0, 0, 0, 0}, ra)),
		"router, in a fragment":          ether(0x86dd, ip6(44, local, []byte{58, 0, 0, 1, 0, 0, 0, 1}, ra)),
		"router, later in the fragments": ether(0x86dd, ip6(44, local, []byte{60, 0, 0, 1, 0, 0, 0, 1, 58, 1, 1, 4, 0, 0, 0, 0})),
		"DHCPv6 server":                  ether(0x86dd, ip6(17, local, udp(547, 546))),
		"DHCPv6 server, behind a route":  ether(0x86dd, ip6(43, local, []byte{17, 0, 0, 0, 0, 0, 0, 0}, udp(547, 546))),
		"PPPoE":                          ether(0x8863, []byte{0x11, 9, 0, 0, 0, 0}),
	}
	return his, prefixed(others)
}

// prefixed are the same frames under names that are no frame's of the other kind.
func prefixed(all map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for name, f := range all {
		out["forged "+name] = f
	}
	return out
}
