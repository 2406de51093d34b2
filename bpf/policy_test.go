package bpf

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// withPorts sets the TCP ports of an IPv4 frame without options or an IPv6 frame without extension headers.
func withPorts(src, dst int, f []byte) []byte {
	f = bytes.Clone(f)
	l4 := 14 + 20
	if f[12] == 0x86 {
		l4 = 14 + 40
	}
	copy(f[l4:], join(be(src), be(dst)))
	return f
}

func TestPolicyNarrowsWhatIsSteered(t *testing.T) {
	var (
		v4  = padded(60, ip4(6, 0x4000, nil, tcp(8, 0x18, 100)))
		v6  = ip6(6, tcp(8, 0x18, 100))
		arp = padded(60, ether(0x0806, make([]byte, 28)))
		cut = padded(60, ip4(6, 0, nil, []byte{1, 2, 3}))
	)
	p := loadForTest(t)
	socketFor(t, p)
	for port, n := range map[uint32]uint16{3: 22, 4: 23} {
		if err := p.SetExcluded(port, []uint16{n}); err != nil {
			t.Fatal(err)
		}
	}
	const tcpOnly = FlagSteer | FlagTCPOnly
	const udp4, udp6 = tcpOnly | FlagUDP4, tcpOnly | FlagUDP6
	datagram4, datagram6 := ip4(17, 0, nil, make([]byte, 30)), ip6(17, make([]byte, 30))
	for _, c := range []struct {
		name  string
		flags uint32
		frame []byte
		steer bool
	}{
		{"everything: arp", FlagSteer, arp, true},
		{"everything: a fragment", FlagSteer, ip4(6, 0x2000, nil, tcp(5, 0x10, 40)), true},
		{"everything: family flags need TCP only", FlagSteer | FlagNoV4 | FlagExcludes, withPorts(22, 1, v4), true},
		{"TCP only: ipv4", tcpOnly, v4, true},
		{"TCP only: ipv6", tcpOnly, v6, true},
		{"TCP only: with options", tcpOnly, ip4(6, 0, make([]byte, 12), tcp(5, 0x10, 40)), true},
		{"TCP only: behind an extension header", tcpOnly, ip6(0, ext(6, 1), tcp(5, 0x10, 40)), true},
		{"TCP only: arp", tcpOnly, arp, false},
		{"TCP only: udp", tcpOnly, ip4(17, 0, nil, make([]byte, 30)), false},
		{"TCP only: udp over ipv6", tcpOnly, ip6(17, make([]byte, 30)), false},
		{"TCP only: without ports", tcpOnly, cut, false},
		{"TCP only: first fragment", tcpOnly, ip4(6, 0x2000, nil, tcp(5, 0x10, 40)), false},
		{"TCP only: later fragment", tcpOnly, ip4(6, 0x00b9, nil, tcp(5, 0x10, 40)), false},
		{"TCP only: first fragment of ipv6", tcpOnly, ip6(44, fragHeader(6, 1), tcp(5, 0x10, 40)), false},
		{"TCP only: atomic fragment", tcpOnly, ip6(44, fragHeader(6, 0), tcp(5, 0x10, 40)), true},
		{"and UDP: udp", udp4, datagram4, true},
		{"and UDP: udp over ipv6", udp6, datagram6, true},
		{"and UDP: tcp", udp4, v4, true},
		{"and UDP: of ipv4 alone, udp over ipv6", udp4, datagram6, false},
		{"and UDP: of ipv6 alone, udp", udp6, datagram4, false},
		{"and UDP: without TCP over ipv4", udp4 | FlagNoV4, datagram4, true},
		{"and UDP: first fragment", udp4, ip4(17, 0x2000, nil, make([]byte, 30)), false},
		{"and UDP: later fragment", udp4, ip4(17, 0x00b9, nil, make([]byte, 30)), false},
		{"and UDP: with options", udp4, ip4(17, 0, make([]byte, 12), make([]byte, 30)), false},
		{"and UDP: behind an extension header", udp6, ip6(0, ext(17, 1), make([]byte, 30)), false},
		{"and UDP: half a header", udp4, padded(60, ip4(17, 0, nil, make([]byte, 7))), false},
		{"and UDP: half a header of ipv6", udp6, padded(70, ip6(17, make([]byte, 7))), false},
		{"and UDP: only a header", udp4, padded(60, ip4(17, 0, nil, make([]byte, 8))), true},
		{"and UDP: icmp", udp4 | udp6, ip4(1, 0, nil, make([]byte, 30)), false},
		{"and UDP: arp", udp4 | udp6, arp, false},
		{"and UDP: excluded destination", udp4 | FlagExcludes, ip4(17, 0, nil, append([]byte{0, 1, 0, 22}, make([]byte, 30)...)), false},
		{"and UDP: excluded source of ipv6", udp6 | FlagExcludes, ip6(17, append([]byte{0, 22, 0, 1}, make([]byte, 30)...)), false},
		{"UDP without TCP only's bit", FlagUDP4, datagram4, false},
		{"TCP only without steering", FlagTCPOnly, v4, false},
		{"no ipv4: ipv4", tcpOnly | FlagNoV4, v4, false},
		{"no ipv4: ipv6", tcpOnly | FlagNoV4, v6, true},
		{"no ipv6: ipv4", tcpOnly | FlagNoV6, v4, true},
		{"no ipv6: ipv6", tcpOnly | FlagNoV6, v6, false},
		{"excluded source", tcpOnly | FlagExcludes, withPorts(22, 1, v4), false},
		{"excluded destination", tcpOnly | FlagExcludes, withPorts(1, 22, v4), false},
		{"excluded destination of ipv6", tcpOnly | FlagExcludes, withPorts(1, 22, v6), false},
		{"bytes of an excluded port swapped", tcpOnly | FlagExcludes, withPorts(22<<8, 22<<8, v4), true},
		{"excluded for another vm", tcpOnly | FlagExcludes, withPorts(1, 23, v4), true},
		{"excluded without the flag", tcpOnly, withPorts(22, 22, v4), true},
	} {
		for _, vlan := range []uint16{0, testVLAN} {
			frame := c.frame
			name := c.name
			if vlan != 0 {
				frame, name = tagged(0x8100, testVLAN|0x2000, frame), name+" in a vlan"
			}
			t.Run(name, func(t *testing.T) {
				p.mustSetPort(t, vlan, PortValue{Port: 3, Flags: c.flags})
				var act uint32
				var out []byte
				got := moved(t, p, func() { act, out = p.run(t, frame) })
				if c.steer {
					if act != 4 || got["redirect"] != 1 {
						t.Errorf("action %d, counted %v; not steered", act, got)
					}
					return
				}
				if act != 2 || len(got) != 1 || got["pass_port"] != 1 {
					t.Errorf("action %d, counted %v; not passed", act, got)
				}
				if !bytes.Equal(out, frame) {
					t.Errorf("a passed frame was changed:\n%x\n%x", out, frame)
				}
			})
		}
	}
}

func TestWhatPolicyKeepsIsStillCounted(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3, Flags: FlagSteer | FlagTCPOnly | FlagNoV4})
	p.run(t, padded(60, ip4(6, 0x4000, nil, tcp(5, 0x10, 2))))
	rows, err := p.readFlows(t, 3)
	if err != nil || len(rows) != 1 || rows[0].Stats.Packets() != 1 || rows[0].Key.Dir != DirToGuest {
		t.Errorf("rows %+v, %v", rows, err)
	}
}

func excludedOf(t *testing.T, p *Program, port uint32) (out []uint16) {
	t.Helper()
	var k excludedKey
	var v uint8
	it := p.excluded.Iterate()
	for it.Next(&k, &v) {
		if k.Port == port {
			out = append(out, k.TCPPort)
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func TestExcludedPortsAreReplaced(t *testing.T) {
	p := loadForTest(t)
	for _, set := range [][]uint16{{22, 443}, {443, 80, 443}, {80}, nil, {1, 65535}} {
		if err := p.SetExcluded(7, set); err != nil {
			t.Fatal(err)
		}
		want := slices.Compact(slices.Sorted(slices.Values(set)))
		if got := excludedOf(t, p, 7); !slices.Equal(got, want) {
			t.Errorf("set %v, there %v", set, got)
		}
	}
	if err := p.SetExcluded(8, []uint16{9}); err != nil {
		t.Fatal(err)
	}
	if err := p.SetExcluded(7, nil); err != nil {
		t.Fatal(err)
	}
	if got := excludedOf(t, p, 8); !slices.Equal(got, []uint16{9}) {
		t.Errorf("another VM's set became %v", got)
	}
}

func TestTooManyExcludedPortsLeaveTheOldSet(t *testing.T) {
	p := loadForTest(t)
	if err := p.SetExcluded(1, []uint16{5}); err != nil {
		t.Fatal(err)
	}
	all := make([]uint16, p.excluded.MaxEntries()+1)
	for i := range all {
		all[i] = uint16(i + 1)
	}
	if err := p.SetExcluded(1, all); !errors.Is(err, ErrTooManyExcluded) {
		t.Fatalf("got %v", err)
	}
	if got := excludedOf(t, p, 1); !slices.Equal(got, []uint16{5}) {
		t.Errorf("the set is now %d ports", len(got))
	}
}
