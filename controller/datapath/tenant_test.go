package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

var tenantSources = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("192.0.2.64/28"), netip.MustParsePrefix("2001:db8::5/128"), netip.MustParsePrefix("2001:db8:7::/48"),
}

// isTenant keeps a VM to tenantSources.
func isTenant(c *PortConfig) { c.Sources = NewSources(tenantSources) }

// tenantMAC is the address of newLAN's first VM, tenantLL what it makes of it.
var tenantMAC = [6]byte{2, 0, 0, 0, 1, 0}

const tenantLL = "fe80::ff:fe00:100"

func ether(dst [6]byte, kind uint16, body ...[]byte) []byte {
	f := append(append(dst[:], tenantMAC[:]...), byte(kind>>8), byte(kind))
	return append(f, bytes.Join(body, nil)...)
}

// packet4 is an IPv4 packet; frag is the field with flags and offset.
func packet4(src, dst string, proto byte, frag uint16, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 1, byte(frag >> 8), byte(frag), 64, proto, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	b = append(append(b, netip.MustParseAddr(src).AsSlice()...), netip.MustParseAddr(dst).AsSlice()...)
	return append(b, payload...)
}

// packet6 is an IPv6 packet. exts are whole extension headers, whose first byte is overwritten.
func packet6(src, dst string, proto byte, payload []byte, exts ...ext) []byte {
	first, body := proto, []byte{}
	for i, e := range exts {
		next := proto
		if i+1 < len(exts) {
			next = exts[i+1].kind
		}
		h := bytes.Clone(e.data)
		h[0] = next
		body = append(body, h...)
	}
	if len(exts) > 0 {
		first = exts[0].kind
	}
	body = append(body, payload...)
	b := []byte{0x60, 0, 0, 0, byte(len(body) >> 8), byte(len(body)), first, 255}
	b = append(append(b, netip.MustParseAddr(src).AsSlice()...), netip.MustParseAddr(dst).AsSlice()...)
	return append(b, body...)
}

type ext struct {
	kind byte
	data []byte
}

var (
	hopByHop = ext{0, []byte{0, 0, 5, 2, 0, 0, 1, 0}} // a router alert, as of MLD
	dstOpts  = ext{60, []byte{0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}
	auth     = ext{51, []byte{0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4}}
)

func fragment(offset uint16, more bool) ext {
	v := offset &^ 7
	if more {
		v |= 1
	}
	return ext{44, []byte{0, 0, byte(v >> 8), byte(v), 0, 0, 0, 1}}
}

func udp(from, to uint16) []byte {
	b := make([]byte, 40)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], 40)
	return b
}

func arp(op uint16, sha [6]byte, spa string, tha [6]byte, tpa string) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)}, sha[:]...)
	b = append(append(b, netip.MustParseAddr(spa).AsSlice()...), tha[:]...)
	return append(append(b, netip.MustParseAddr(tpa).AsSlice()...), make([]byte, 18)...)
}

// nd is an ICMPv6 message; target "" leaves it out.
func nd(kind byte, target string, options ...[]byte) []byte {
	b := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
	if target != "" {
		b = append(b, netip.MustParseAddr(target).AsSlice()...)
	}
	return append(b, bytes.Join(options, nil)...)
}

func llOption(kind byte, mac [6]byte) []byte { return append([]byte{kind, 1}, mac[:]...) }

const (
	allNodes   = "ff02::1"
	allRouters = "ff02::2"
	solicited  = "ff02::1:ff00:5"
	gateway6   = "fe80::1"
)

// tenantFrames are frames of a VM that is kept to tenantSources, and why they are refused; 0 (psh, which refuses nothing): they pass.
func tenantFrames() map[string]struct {
	frame []byte
	why   flowtable.Reason
} {
	type row = struct {
		frame []byte
		why   flowtable.Reason
	}
	const (
		ok   = flowtable.Reason(0)
		ip   = flowtable.ReasonSourceIP
		arpS = flowtable.ReasonSourceARP
		ndS  = flowtable.ReasonSourceND
		dhcp = flowtable.ReasonDHCPServer
		ra   = flowtable.ReasonRouterAdvert
		bad  = flowtable.ReasonMalformed
		kind = flowtable.ReasonEtherType
	)
	nobody, router := [6]byte{}, lanStation
	v4 := func(src, dst string, proto byte, frag uint16, payload []byte) []byte {
		return ether(router, 0x0800, packet4(src, dst, proto, frag, payload))
	}
	v6 := func(src, dst string, proto byte, payload []byte, exts ...ext) []byte {
		return ether(router, 0x86dd, packet6(src, dst, proto, payload, exts...))
	}
	a := func(op uint16, sha [6]byte, spa, tpa string) []byte {
		return ether(everybody, 0x0806, arp(op, sha, spa, nobody, tpa))
	}
	own, other := tenantMAC, [6]byte{2, 0, 0, 0, 1, 7}
	change := func(f []byte, at int, v ...byte) []byte { copy(f[at:], v); return f }
	data := make([]byte, 64)
	return map[string]row{
		"IPv4: its own address":           {v4("10.0.0.5", "8.8.8.8", 6, 0, data), ok},
		"IPv4: one of its network":        {v4("192.0.2.79", "8.8.8.8", 1, 0, data), ok},
		"IPv4: behind its network":        {v4("192.0.2.80", "8.8.8.8", 1, 0, data), ip},
		"IPv4: a neighbour's":             {v4("10.0.0.6", "8.8.8.8", 6, 0, data), ip},
		"IPv4: a group's":                 {v4("224.0.0.1", "8.8.8.8", 6, 0, data), ip},
		"IPv4: none":                      {v4("0.0.0.0", "8.8.8.8", 6, 0, data), ip},
		"IPv4: later fragment, its own":   {v4("10.0.0.5", "8.8.8.8", 17, 185, data), ok},
		"IPv4: later fragment, foreign":   {v4("10.0.0.6", "8.8.8.8", 17, 185, data), ip},
		"IPv4: version 6":                 {change(v4("10.0.0.5", "8.8.8.8", 6, 0, data), 14, 0x65), bad},
		"IPv4: header of 16 bytes":        {change(v4("10.0.0.5", "8.8.8.8", 6, 0, data), 14, 0x44), bad},
		"IPv4: header behind the end":     {change(v4("10.0.0.5", "8.8.8.8", 6, 0, data[:20]), 14, 0x4f), bad},
		"IPv4: no whole header":           {v4("10.0.0.5", "8.8.8.8", 6, 0, nil)[:33], bad},
		"DHCP: client's broadcast":        {v4("0.0.0.0", "255.255.255.255", 17, 0, udp(68, 67)), ok},
		"DHCP: renewal":                   {v4("10.0.0.5", "10.0.0.1", 17, 0, udp(68, 67)), ok},
		"DHCP: client from nowhere":       {v4("0.0.0.0", "10.0.0.1", 17, 0, udp(68, 67)), ip},
		"DHCP: client in fragments":       {v4("0.0.0.0", "255.255.255.255", 17, 0x2000, udp(68, 67)), ip},
		"DHCP: server":                    {v4("10.0.0.5", "255.255.255.255", 17, 0, udp(67, 68)), dhcp},
		"DHCP: server at another port":    {v4("10.0.0.5", "10.0.0.9", 17, 0, udp(1067, 68)), dhcp},
		"DHCP: server in fragments":       {v4("10.0.0.5", "10.0.0.9", 17, 0x2000, udp(67, 68)), dhcp},
		"DHCP: server behind IP options":  {ether(router, 0x0800, slices.Concat([]byte{0x46}, packet4("10.0.0.5", "10.0.0.9", 17, 0, nil)[1:], []byte{1, 1, 1, 1}, udp(67, 68))), dhcp},
		"DHCP: ports cut off":             {v4("10.0.0.5", "10.0.0.9", 17, 0x2000, udp(67, 68)[:7]), bad},
		"DHCP: relay":                     {v4("10.0.0.5", "10.0.0.1", 17, 0, udp(67, 67)), ok},
		"DHCPv6: client":                  {v6(tenantLL, "ff02::1:2", 17, udp(546, 547)), ok},
		"DHCPv6: server":                  {v6(tenantLL, "fe80::9", 17, udp(547, 546)), dhcp},
		"DHCPv6: server behind a header":  {v6(tenantLL, "fe80::9", 17, udp(547, 546), dstOpts), dhcp},
		"DHCPv6: server in fragments":     {v6(tenantLL, "fe80::9", 17, udp(547, 546), fragment(0, true)), dhcp},
		"DHCPv6: ports in the second":     {v6(tenantLL, "fe80::9", 17, udp(547, 546)[:4], fragment(0, true)), bad},
		"ARP: request":                    {a(1, own, "10.0.0.5", "10.0.0.1"), ok},
		"ARP: reply":                      {a(2, own, "192.0.2.64", "10.0.0.1"), ok},
		"ARP: gratuitous":                 {a(1, own, "10.0.0.5", "10.0.0.5"), ok},
		"ARP: probe":                      {a(1, own, "0.0.0.0", "10.0.0.5"), ok},
		"ARP: probe for another's":        {a(1, own, "0.0.0.0", "10.0.0.6"), arpS},
		"ARP: reply from nowhere":         {a(2, own, "0.0.0.0", "10.0.0.5"), arpS},
		"ARP: reply for the gateway":      {a(2, own, "10.0.0.1", "10.0.0.9"), arpS},
		"ARP: request for the gateway":    {a(1, own, "10.0.0.1", "10.0.0.9"), arpS},
		"ARP: another's hardware address": {a(2, other, "10.0.0.5", "10.0.0.9"), arpS},
		"ARP: InARP":                      {a(8, own, "10.0.0.5", "10.0.0.9"), arpS},
		"ARP: of 802.2":                   {change(a(1, own, "10.0.0.5", "10.0.0.1"), 15, 6), arpS},
		"ARP: of another protocol":        {change(a(1, own, "10.0.0.5", "10.0.0.1"), 16, 0x80, 0x35), arpS},
		"ARP: addresses of 8 bytes":       {change(a(1, own, "10.0.0.5", "10.0.0.1"), 18, 8), arpS},
		"ARP: cut off":                    {a(1, own, "10.0.0.5", "10.0.0.1")[:41], bad},
		"RARP: QEMU's announcement":       {ether(everybody, 0x8035, arp(3, own, "0.0.0.0", own, "0.0.0.0")), ok},
		"RARP: of another":                {ether(everybody, 0x8035, arp(3, other, "0.0.0.0", other, "0.0.0.0")), arpS},
		"RARP: server":                    {ether(everybody, 0x8035, arp(4, own, "10.0.0.5", other, "10.0.0.9")), arpS},
		"IPv6: its own address":           {v6("2001:db8::5", "2001:db8::1", 6, data), ok},
		"IPv6: one of its network":        {v6("2001:db8:7:ffff::1", "2001:db8::1", 6, data), ok},
		"IPv6: behind its network":        {v6("2001:db8:8::1", "2001:db8::1", 6, data), ip},
		"IPv6: its link-local address":    {v6(tenantLL, gateway6, 6, data), ok},
		"IPv6: another's link-local":      {v6("fe80::ff:fe00:107", gateway6, 6, data), ip},
		"IPv6: none":                      {v6("::", "2001:db8::1", 6, data), ip},
		"IPv6: a group's":                 {v6("ff02::1", "2001:db8::1", 6, data), ip},
		"IPv6: loopback":                  {v6("::1", "2001:db8::1", 6, data), ip},
		"IPv6: later fragment, its own":   {v6("2001:db8::5", "2001:db8::1", 58, data, fragment(64, false)), ok},
		"IPv6: later fragment, foreign":   {v6("2001:db8::6", "2001:db8::1", 58, data, fragment(64, false)), ip},
		"IPv6: eight headers":             {v6("2001:db8::5", "2001:db8::1", 6, data, slices.Repeat([]ext{dstOpts}, 8)...), ok},
		"IPv6: nine headers":              {v6("2001:db8::5", "2001:db8::1", 6, data, slices.Repeat([]ext{dstOpts}, 9)...), bad},
		"IPv6: header behind the end":     {change(v6("2001:db8::5", "2001:db8::1", 6, data, dstOpts), 55, 255), bad},
		"IPv6: version 4":                 {change(v6("2001:db8::5", "2001:db8::1", 6, data), 14, 0x45), bad},
		"IPv6: no whole header":           {v6("2001:db8::5", "2001:db8::1", 6, nil)[:53], bad},
		"ND: solicitation":                {v6(tenantLL, solicited, 58, nd(135, "fe80::1", llOption(1, own))), ok},
		"ND: another's link layer":        {v6(tenantLL, solicited, 58, nd(135, "fe80::1", llOption(1, other))), ndS},
		"ND: a second link layer":         {v6(tenantLL, solicited, 58, nd(135, "fe80::1", llOption(1, own), llOption(1, other))), ndS},
		"ND: from another's address":      {v6(gateway6, solicited, 58, nd(135, "fe80::2", llOption(1, own))), ip},
		"ND: DAD":                         {v6("::", solicited, 58, nd(135, "2001:db8::5")), ok},
		"ND: DAD with a nonce":            {v6("::", solicited, 58, nd(135, tenantLL, []byte{14, 1, 1, 2, 3, 4, 5, 6})), ok},
		"ND: DAD for another's":           {v6("::", solicited, 58, nd(135, "2001:db8::6")), ndS},
		"ND: DAD with a link layer":       {v6("::", solicited, 58, nd(135, "2001:db8::5", llOption(1, own))), ndS},
		"ND: DAD to one station":          {v6("::", "2001:db8::9", 58, nd(135, "2001:db8::5")), ip},
		"ND: advertisement":               {v6("2001:db8::5", allNodes, 58, nd(136, "2001:db8::5", llOption(2, own))), ok},
		"ND: advertisement for gateway":   {v6(tenantLL, allNodes, 58, nd(136, gateway6, llOption(2, own))), ndS},
		"ND: advertisement of another":    {v6(tenantLL, allNodes, 58, nd(136, "2001:db8::5", llOption(2, other))), ndS},
		"ND: advertisement from nowhere":  {v6("::", allNodes, 58, nd(136, "2001:db8::5")), ip},
		"ND: behind a header":             {v6(tenantLL, allNodes, 58, nd(136, gateway6), hopByHop), ndS},
		"ND: behind AH":                   {v6(tenantLL, allNodes, 58, nd(136, gateway6), auth), ndS},
		"ND: in an atomic fragment":       {v6(tenantLL, allNodes, 58, nd(136, "2001:db8::5", llOption(2, own)), fragment(0, false)), ndS},
		"ND: option of no length":         {v6(tenantLL, allNodes, 58, nd(136, "2001:db8::5", []byte{2, 0, 0, 0, 0, 0, 0, 0})), ndS},
		"ND: option behind the end":       {v6(tenantLL, allNodes, 58, nd(136, "2001:db8::5", []byte{14, 2, 0, 0, 0, 0, 0, 0})), ndS},
		"ND: link layer of 14 bytes":      {v6(tenantLL, allNodes, 58, nd(136, "2001:db8::5", []byte{2, 2, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})), ndS},
		"ND: cut off":                     {v6(tenantLL, allNodes, 58, nd(136, "2001:db8::5")[:23]), ndS},
		"ND: no type":                     {v6(tenantLL, allNodes, 58, []byte{136, 0, 0}), bad},
		"ND: router solicitation":         {v6("::", allRouters, 58, nd(133, "")), ok},
		"ND: solicitation with address":   {v6(tenantLL, allRouters, 58, nd(133, "", llOption(1, own))), ok},
		"ND: solicitation for another":    {v6(tenantLL, allRouters, 58, nd(133, "", llOption(1, other))), ndS},
		"ND: router advertisement":        {v6(tenantLL, allNodes, 58, nd(134, "", make([]byte, 8))), ra},
		"ND: advertisement, header":       {v6(tenantLL, allNodes, 58, nd(134, "", make([]byte, 8)), hopByHop, dstOpts), ra},
		"ND: advertisement, fragments":    {v6(tenantLL, allNodes, 58, nd(134, "", make([]byte, 8)), fragment(0, true)), ra},
		"ND: redirect":                    {v6(tenantLL, "2001:db8::9", 58, nd(137, "fe80::9")), ra},
		"ND: inverse":                     {v6(tenantLL, allNodes, 58, nd(141, "")), ndS},
		"MLD: report":                     {v6("::", "ff02::16", 58, []byte{143, 0, 0, 0, 0, 0, 0, 0}, hopByHop), ok},
		"MLD: report to one station":      {v6("::", "2001:db8::9", 58, []byte{143, 0, 0, 0, 0, 0, 0, 0}, hopByHop), ip},
		"ICMPv6: echo":                    {v6("2001:db8::5", "2001:db8::1", 58, []byte{128, 0, 0, 0, 0, 0, 0, 0}), ok},
		"ICMPv6: echo from nowhere":       {v6("::", allNodes, 58, []byte{128, 0, 0, 0, 0, 0, 0, 0}), ip},
		"other: EAPOL":                    {ether(router, 0x888e, data), kind},
		"other: PPPoE":                    {ether(router, 0x8864, data), kind},
		"other: MPLS":                     {ether(router, 0x8847, data), kind},
		"other: LLC":                      {ether(router, 0x0040, data), kind},
		"other: IP in SNAP":               {ether(router, 0x0040, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, packet4("10.0.0.6", "8.8.8.8", 6, 0, data)), kind},
	}
}

// Each frame alone, and behind a priority tag.
func TestATenantSpeaksForItselfAlone(t *testing.T) {
	l := newLAN(t, 64)
	g, free, other := l.vm(isTenant), l.vm(), l.vm()
	for name, row := range tenantFrames() {
		for _, tag := range [][]byte{nil, {0x81, 0, 0xe0, 0}} {
			frame := slices.Insert(bytes.Clone(row.frame), 12, tag...)
			l.send(g, frame)
			if row.why == 0 {
				dropsAre(t, name, l.txDropped(g), lanReasons{})
				if len(l.sent()) != 1 {
					t.Errorf("%s: not on the wire", name)
				}
			} else {
				dropsAre(t, name, l.txDropped(g), lanReasons{row.why: 1})
				sameFrames(t, name+" on the wire", l.sent())
				sameFrames(t, name+" at a neighbour", slices.Concat(free.heard(), other.heard()))
			}
			free.heard()
			other.heard()
		}
	}
	// The same from a VM of which no addresses were named.
	for name, row := range tenantFrames() {
		f := bytes.Clone(row.frame)
		copy(f[6:], free.mac[:])
		l.send(free, f)
		dropsAre(t, name, l.txDropped(free), lanReasons{})
	}
}

// A frame to a VM beside it is held to the same.
func TestATenantDoesNotReachItsNeighbourByASpoof(t *testing.T) {
	l := newLAN(t, 64)
	g, other := l.vm(isTenant), l.vm()
	for name, row := range tenantFrames() {
		f := bytes.Clone(row.frame)
		copy(f, other.mac[:])
		l.send(g, f)
		if got := len(other.heard()); (got == 1) != (row.why == 0) {
			t.Errorf("%s: %d frames at the neighbour", name, got)
		}
	}
}

// The checksum that a guest leaves to its device is written where the guest says: not into what was judged.
func TestAChecksumCannotChangeATenantsFrame(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm(isTenant)
	for _, c := range []struct {
		name       string
		start, off uint16
		frame      []byte
		refused    bool
	}{
		{"TCP", 34, 16, tenantFrames()["IPv4: its own address"].frame, false},
		{"UDP", 34, 6, tenantFrames()["DHCP: renewal"].frame, false},
		{"source address", 26, 0, tenantFrames()["IPv4: its own address"].frame, true},
		{"last byte of the header", 33, 0, tenantFrames()["IPv4: its own address"].frame, true},
		{"UDP's ports", 34, 2, tenantFrames()["DHCP: renewal"].frame, true},
		{"ARP", 40, 0, tenantFrames()["ARP: request"].frame, true},
		{"IPv6 source", 36, 0, tenantFrames()["IPv6: its own address"].frame, true},
		{"ND option", 80, 0, tenantFrames()["ND: advertisement"].frame, true},
	} {
		l.sendHdr(g, virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: c.start, CsumOffset: c.off}, bytes.Clone(c.frame))
		want := lanReasons{}
		if c.refused {
			want[flowtable.ReasonMalformed] = 1
		}
		dropsAre(t, c.name, l.txDropped(g), want)
	}
}

func TestATenantsTSOFramesAreJudged(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm(isTenant)
	h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 100, CsumStart: 34, CsumOffset: 16}
	for src, n := range map[string]int{"10.0.0.5": 10, "10.0.0.6": 0} {
		f := pt.TCP{DstMAC: lanStation, SrcMAC: g.mac, Len: 1000}.Frame()
		copy(f[26:], netip.MustParseAddr(src).AsSlice())
		l.sendHdr(g, h, f)
		if got := len(l.sent()); got != n {
			t.Errorf("from %s: %d packets, want %d", src, got, n)
		}
	}
	dropsAre(t, "TSO", l.txDropped(g), lanReasons{flowtable.ReasonSourceIP: 1})
}

func TestATenantIsAmendedWhileItRuns(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm()
	spoof := tenantFrames()["IPv4: a neighbour's"].frame
	l.send(g, bytes.Clone(spoof))
	dropsAre(t, "before", l.txDropped(g), lanReasons{})
	cfg := l.w.port(0).PortConfig
	isTenant(&cfg)
	if err := l.w.amendPort(cfg); err != nil {
		t.Fatal(err)
	}
	l.send(g, bytes.Clone(spoof))
	dropsAre(t, "kept to its addresses", l.txDropped(g), lanReasons{flowtable.ReasonSourceIP: 1})
	cfg.Sources = nil
	if err := l.w.amendPort(cfg); err != nil {
		t.Fatal(err)
	}
	l.send(g, bytes.Clone(spoof))
	dropsAre(t, "after", l.txDropped(g), lanReasons{})
}

func furtherMAC(n byte) [6]byte { return [6]byte{2, 0, 0, 0, 2, n} }

// A VM has each of its addresses: frames come for it, it may send from it, and nobody else may; one that is taken off is nobody's.
func TestAVMHasEachOfItsAddresses(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm(func(c *PortConfig) { c.MACs = [][6]byte{furtherMAC(1), furtherMAC(2)} })
	other, spoofer := l.vm(), l.vm(maySpoof)
	for _, mac := range [][6]byte{g.mac, furtherMAC(1), furtherMAC(2)} {
		l.send(other, lanFrame(mac, other.mac, privateType))
		sameFrames(t, "at the VM", g.heard(), lanFrame(mac, other.mac, privateType))
		l.send(g, lanFrame(other.mac, mac, privateType))
		sameFrames(t, "from the VM", other.heard(), lanFrame(other.mac, mac, privateType))
		l.refused(t, flowtable.ReasonHairpin, g, lanFrame(mac, g.mac, privateType))
		l.refused(t, flowtable.ReasonSourceMAC, other, lanFrame(lanStation, mac, privateType))
		l.refused(t, flowtable.ReasonSourceMAC, spoofer, lanFrame(lanStation, mac, privateType))
		l.receiveGroup(lanGroupFrame{data: lanFrame(everybody, mac, privateType)}) // its own, sent back
		sameFrames(t, "sent back", g.heard())
		other.heard()
		spoofer.heard()
	}
	l.rxDropped(g)
	cfg := l.w.port(0).PortConfig
	cfg.MACs = [][6]byte{furtherMAC(2), furtherMAC(3)}
	if err := l.w.amendPort(cfg); err != nil {
		t.Fatal(err)
	}
	l.refused(t, flowtable.ReasonSourceMAC, g, lanFrame(lanStation, furtherMAC(1), privateType))
	for n, want := range map[byte]int{1: 0, 2: 1, 3: 1} {
		l.send(other, lanFrame(furtherMAC(n), other.mac, privateType))
		if got := len(g.heard()); got != want {
			t.Errorf("address %d: %d frames", n, got)
		}
		l.sent()
	}
	l.w.removePort(0)
	if len(l.w.byAddr) != 2 {
		t.Errorf("addresses without the VM: %v", l.w.byAddr)
	}
}

// With --ip the addresses that it makes of its further MAC addresses are its own too, and ARP may name them.
func TestATenantSpeaksForItsFurtherAddresses(t *testing.T) {
	l := newLAN(t, 64)
	g := l.vm(isTenant, func(c *PortConfig) { c.MACs = [][6]byte{furtherMAC(1)} })
	ll := ether(lanStation, 0x86dd, packet6("fe80::ff:fe00:201", gateway6, 6, make([]byte, 64)))
	l.send(g, ll, ether(everybody, 0x0806, arp(1, furtherMAC(1), "10.0.0.5", [6]byte{}, "10.0.0.1")))
	dropsAre(t, "its own", l.txDropped(g), lanReasons{})
	l.sent()
	l.refused(t, flowtable.ReasonSourceARP, g, ether(everybody, 0x0806, arp(1, furtherMAC(2), "10.0.0.5", [6]byte{}, "10.0.0.1")))
}

// What is isolated is kept apart from the next frame on, in both directions; the wire stays.
func TestIsolationIsSwitchedWhileItRuns(t *testing.T) {
	l := newLAN(t, 64)
	g, other := l.vm(), l.vm()
	to, back, all := lanFrame(other.mac, g.mac, privateType), lanFrame(g.mac, other.mac, privateType), lanFrame(everybody, g.mac, privateType)
	for _, on := range []bool{false, true, false} {
		cfg := l.w.port(0).PortConfig
		cfg.Isolated = on
		if err := l.w.amendPort(cfg); err != nil {
			t.Fatal(err)
		}
		want := 1
		if on {
			want = 0
		}
		l.send(g, to, all)
		l.send(other, back)
		if a, b := len(other.heard()), len(g.heard()); a != 2*want || b != want {
			t.Errorf("isolated %t: %d and %d frames crossed", on, a, b)
		}
		if n := len(l.sent()); n != 1 {
			t.Errorf("isolated %t: %d frames on the wire, want the broadcast", on, n)
		}
		l.receiveGroup(lanGroupFrame{data: all}) // the switch sends it back
		if n := len(other.heard()); n != want {
			t.Errorf("isolated %t: %d frames came back by the wire", on, n)
		}
		g.heard()
	}
}
