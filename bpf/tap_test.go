package bpf

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/test/netnstest"
)

// The TC program is run on frames by BPF_PROG_TEST_RUN, as from the VM with peerMAC: no interface is touched.

func loadTapForTest(t *testing.T, vlan uint16) *TapProgram {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	p, err := LoadTap(TapOptions{Ifindex: 1, VLAN: vlan, MAC: peerMAC})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// skb is struct __sk_buff as far as BPF_PROG_TEST_RUN takes it: everything else must be 0.
type skb struct {
	_       [176]byte
	GSOSize uint32
	_       [12]byte
}

// send gives the program one frame, as gsoSize says, and checks that it leaves it alone.
func (p *TapProgram) send(t *testing.T, frame []byte, gsoSize uint32) {
	t.Helper()
	leavesAlone(t, p.prog, frame, gsoSize)
}

// leavesAlone runs a TC program on a frame, which it must pass on as it is.
func leavesAlone(t *testing.T, prog *ebpf.Program, frame []byte, gsoSize uint32) {
	t.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)), Repeat: 1, Context: skb{GSOSize: gsoSize}}
	act, err := prog.Run(&o)
	if err != nil {
		t.Fatalf("run of %d bytes: %v", len(frame), err)
	}
	if int32(act) != -1 || !bytes.Equal(o.DataOut, frame) {
		t.Fatalf("answer %d for\n%x\nwhich became\n%x", int32(act), frame, o.DataOut)
	}
}

// takeFlows reads and empties the flow map.
func takeFlows(t *testing.T, p *TapProgram) []Flow {
	t.Helper()
	rows, err := ReadFlows(p.Flows())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := p.Flows().Delete(r.Key); err != nil {
			t.Fatal(err)
		}
	}
	return rows
}

// sameTapParse compares what the program made of one frame with packet.Parse.
func sameTapParse(t *testing.T, p *TapProgram, name string, frame []byte) {
	t.Helper()
	p.send(t, frame, 0)
	rows := takeFlows(t, p)
	var want packet.Info
	packet.Parse(frame, &want)
	if !want.Keyed || want.TCI&0xfff != 0 || [6]byte(frame[6:]) != peerMAC {
		if len(rows) != 0 {
			t.Fatalf("%s: counted %+v\n%x", name, rows, frame)
		}
		return
	}
	key := FlowKey{Family: want.Family, Dir: DirToWire,
		SrcPort: uint16(frame[want.L4])<<8 | uint16(frame[want.L4+1]), DstPort: uint16(frame[want.L4+2])<<8 | uint16(frame[want.L4+3])}
	if want.Family == 4 {
		copy(key.SrcIP[:], frame[want.L3+12:][:4])
		copy(key.DstIP[:], frame[want.L3+16:][:4])
	} else {
		copy(key.SrcIP[:], frame[want.L3+8:][:16])
		copy(key.DstIP[:], frame[want.L3+24:][:16])
	}
	if len(rows) != 1 || rows[0].Key != key {
		t.Fatalf("%s: counted %+v\nwant %+v\n%x", name, rows, key, frame)
	}
	s := rows[0].Stats
	if s.Packets() != 1 || s.Verdicts[want.Verdict] != 1 || s.Bytes != uint64(len(frame)) || s.PayloadBytes != uint64(want.PayloadLen) || s.TCPFlags != uint32(want.TCPFlags) {
		t.Fatalf("%s: counted %+v\nwant %+v\n%x", name, s, want, frame)
	}
}

func TestTheTapsParserAgreesToo(t *testing.T) {
	p := loadTapForTest(t, 0)
	t.Run("whole", func(t *testing.T) {
		for _, s := range samples() {
			sameTapParse(t, p, s.name, s.frame)
		}
	})
	t.Run("cut", func(t *testing.T) {
		for _, s := range samples()[:40] {
			// The run itself refuses frames without all of the fixed IP header.
			at := minRun + 1
			switch int(s.frame[12])<<8 | int(s.frame[13]) {
			case 0x0800:
				at = 14 + 20
			case 0x86dd:
				at = 14 + 40
			}
			for n := at; n < min(len(s.frame), 120); n++ {
				sameTapParse(t, p, s.name, s.frame[:n])
			}
		}
	})
	t.Run("mutated", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		all := samples()
		for range 5000 {
			f := bytes.Clone(all[rng.IntN(len(all))].frame)
			for range 1 + rng.IntN(4) {
				f[12+rng.IntN(min(len(f), 140)-12)] ^= 1 << rng.IntN(8)
			}
			sameTapParse(t, p, "mutated", f)
		}
	})
}

func TestASuperframeCountsAsWhatItBecomes(t *testing.T) {
	for _, c := range []struct {
		name             string
		vlan             uint16
		frame            []byte
		gso              uint32
		segments, onWire uint64
		verdict          packet.Verdict
	}{
		{"no gso", 0, ip4(6, 0x4000, nil, tcp(8, 0x18, 3000)), 0, 1, 14 + 20 + 32 + 3000, packet.OK},
		{"a full last segment", 0, ip4(6, 0x4000, nil, tcp(8, 0x18, 3000)), 1000, 3, 3*(14+20+32) + 3000, packet.OK},
		{"a short last segment", 0, ip4(6, 0x4000, nil, tcp(8, 0x18, 2001)), 1000, 3, 3*(14+20+32) + 2001, packet.OK},
		{"one segment", 0, ip4(6, 0x4000, nil, tcp(8, 0x18, 1000)), 1000, 1, 14 + 20 + 32 + 1000, packet.OK},
		{"less than one", 0, ip4(6, 0x4000, nil, tcp(8, 0x18, 10)), 1000, 1, 14 + 20 + 32 + 10, packet.OK},
		{"ipv6", 0, ip6(6, tcp(5, 0x18, 3000)), 1440, 3, 3*(14+40+20) + 3000, packet.OK},
		{"ipv6 with an extension header", 0, ip6(0, ext(6, 1), tcp(5, 0x18, 3000)), 1400, 3, 3*(14+40+16+20) + 3000, packet.ExtHeader},
		{"with a priority tag", 0, tagged(0x8100, 0xe000, ip4(6, 0x4000, nil, tcp(5, 0x18, 2000))), 1000, 2, 2*(18+20+20) + 2000, packet.OK},
		{"towards a vlan", testVLAN, ip4(6, 0x4000, nil, tcp(5, 0x18, 2000)), 1000, 2, 2*(18+20+20) + 2000, packet.OK},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := loadTapForTest(t, c.vlan)
			p.send(t, c.frame, c.gso)
			rows := takeFlows(t, p)
			if len(rows) != 1 {
				t.Fatalf("%+v", rows)
			}
			if s := rows[0].Stats; s.Packets() != c.segments || s.Verdicts[c.verdict] != c.segments || s.Bytes != c.onWire {
				t.Errorf("%d packets, %d bytes; want %d, %d", s.Packets(), s.Bytes, c.segments, c.onWire)
			}
		})
	}
}

func TestEveryFrameOfATapCountsUnderOneOutcome(t *testing.T) {
	data := func() []byte { return ip4(6, 0x4000, nil, tcp(8, 0x18, 100)) }
	spoofed := data()
	spoofed[11]++
	for _, c := range []struct {
		name    string
		frame   []byte
		outcome string
	}{
		{"tcp", data(), "counted"},
		{"udp", ip4(17, 0, nil, make([]byte, 30)), "no_flow"},
		{"arp", padded(60, ether(0x0806, make([]byte, 28))), "no_flow"},
		{"another source", spoofed, "foreign_mac"},
		{"another vlan", tagged(0x8100, testVLAN, data()), "foreign_tag"},
		{"two tags", tagged(0x8100, 0, tagged(0x8100, testVLAN, data())), "foreign_tag"},
		{"a service tag", tagged(0x88a8, 0, data()), "foreign_tag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := loadTapForTest(t, 0)
			p.send(t, c.frame, 0)
			got, err := p.Outcomes()
			if err != nil {
				t.Fatal(err)
			}
			for name, n := range got {
				if want := name == c.outcome; n != 0 != want {
					t.Errorf("%s: %d", name, n)
				}
			}
			if rows := takeFlows(t, p); (len(rows) == 1) != (c.outcome == "counted") {
				t.Errorf("%d flows", len(rows))
			}
		})
	}
}

func TestBothDirectionsShareAMap(t *testing.T) {
	netnstest.Need(t, netnstest.BPF)
	x := loadForTest(t)
	x.mustSetPort(t, 0, PortValue{Port: 3})
	m := x.flowsOf(t, 3)
	p, err := LoadTap(TapOptions{Ifindex: 2, MAC: peerMAC, Flows: m})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	frame := ip4(6, 0x4000, nil, tcp(8, 0x18, 100)) // its two addresses are those of both VMs
	x.run(t, frame)
	p.send(t, frame, 0)
	p.send(t, frame, 0)
	rows, err := ReadFlows(m)
	if err != nil || len(rows) != 2 {
		t.Fatalf("%+v, %v", rows, err)
	}
	for _, r := range rows {
		want := FlowKey{Family: 4, Dir: r.Key.Dir, SrcPort: 40000, DstPort: 443, SrcIP: r.Key.SrcIP, DstIP: r.Key.DstIP}
		if r.Key != want || r.Stats.Packets() != 1+uint64(r.Key.Dir) {
			t.Errorf("%+v", r)
		}
	}
	if p.Flows() != nil {
		t.Error("the shared map is called its own")
	}
}

func TestTapOutcomesHaveNames(t *testing.T) {
	spec, err := LoadRscTap()
	if err != nil {
		t.Fatal(err)
	}
	if n := spec.Maps[RscTapMapOutcomes].MaxEntries; int(n) != len(tapOutcomeNames) {
		t.Errorf("%d outcomes in C, %d names in Go", n, len(tapOutcomeNames))
	}
	rsc, err := LoadRsc()
	if err != nil {
		t.Fatal(err)
	}
	if a, b := spec.Maps[RscTapMapFlows], rsc.Maps[RscMapFlows].InnerMap; a.KeySize != b.KeySize || a.ValueSize != b.ValueSize || a.Type != b.Type {
		t.Errorf("the two objects do not share a flow map: %v, %v", a, b)
	}
}
