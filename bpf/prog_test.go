package bpf

import (
	"bytes"
	"github.com/rscctl/rscctl/bpf/meta"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/test/netnstest"
)

// The program is run on frames by BPF_PROG_TEST_RUN: no interface is touched.

func loadForTest(t testing.TB) *Program {
	t.Helper()
	netnstest.Need(t, netnstest.BPF)
	p, err := Load(LoadOptions{Ifindex: 1, Queues: 1})
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

// mustSetPort adds a VM in a VLAN, with a flow map of 4096 rows.
func (p *Program) mustSetPort(t testing.TB, vlan uint16, v PortValue) {
	t.Helper()
	p.countIn(t, v.Port, 4096)
	if err := p.SetPort(PortKey{VLAN: vlan, MAC: vmMAC}, v); err != nil {
		t.Fatal(err)
	}
}

// countIn gives a VM an empty flow map.
func (p *Program) countIn(t testing.TB, id uint32, entries int) {
	t.Helper()
	m := flowMap(t, entries)
	if err := p.SetFlows(id, m); err != nil {
		t.Fatal(err)
	}
}

// flowMap is one VM's flow map.
func flowMap(t testing.TB, entries int) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(flowSpec(t, entries).rows)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// flowsOf is the flow map that the program counts a VM's frames in.
func (p *Program) flowsOf(t testing.TB, id uint32) *ebpf.Map {
	t.Helper()
	var m *ebpf.Map
	if err := p.flows.Lookup(id, &m); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// readFlows are a VM's flows.
func (p *Program) readFlows(t testing.TB, id uint32) ([]Flow, error) {
	t.Helper()
	return p.Slots().Flows(id, p.flowsOf(t, id))
}

// run gives the program one frame and returns its answer and what it left, metadata first.
func (p *Program) run(t *testing.T, frame []byte) (uint32, []byte) {
	t.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+meta.Size), Repeat: 1}
	act, err := p.prog.Run(&o)
	if err != nil {
		t.Fatalf("run of %d bytes: %v", len(frame), err)
	}
	return act, o.DataOut
}

const minRun = 14 // shorter frames are refused by BPF_PROG_TEST_RUN, and do not occur

// expectVLAN is what the frame is looked up as: false when it cannot be for any port.
func expectVLAN(i *packet.Info) (uint16, bool) {
	id := i.TCI & 0xfff
	if i.Verdict == packet.VLANStack && id == 0 {
		return 0, false
	}
	return id, true
}

// sameParse compares the program's parse of one frame with packet.Parse.
func sameParse(t *testing.T, p *Program, name string, frame []byte) {
	t.Helper()
	_, out := p.run(t, frame)
	var want packet.Info
	packet.Parse(frame, &want)
	vlan, ok := expectVLAN(&want)
	if !ok || vlan != 0 && vlan != testVLAN || frame[0]&1 != 0 || [6]byte(frame) != vmMAC {
		if len(out) != len(frame) {
			t.Fatalf("%s: steered, though it is for nobody\n%x", name, frame)
		}
		return
	}
	var m meta.Meta
	if len(out) != len(frame)+meta.Size || !meta.Parse(out, len(frame), &m) {
		t.Fatalf("%s: no metadata\n%x", name, frame)
	}
	if !bytes.Equal(out[meta.Size:], frame) {
		t.Fatalf("%s: the frame was changed", name)
	}
	got := packet.Info{L3: uint32(m.L3), L4: uint32(m.L4), Payload: uint32(m.Payload), PayloadLen: uint32(m.PayloadLen), TCI: m.TCI,
		Tagged: m.Flags&meta.Tagged != 0, Keyed: m.Flags&meta.Keyed != 0, Family: m.Family, TCPFlags: m.TCPFlags, Verdict: packet.Verdict(m.Verdict)}
	if got != want || m.Flags&meta.Accelerated != 0 {
		t.Fatalf("%s (%d bytes):\nbpf %+v\ngo  %+v\n%x", name, len(frame), got, want, frame)
	}
	if want := uint32(vlan); m.Port != want {
		t.Fatalf("%s: port %d, want %d", name, m.Port, want)
	}
}

func TestBothParsersAgree(t *testing.T) {
	p := loadForTest(t)
	for _, vlan := range []uint16{0, testVLAN} {
		p.mustSetPort(t, vlan, PortValue{Port: uint32(vlan), Flags: FlagSteer})
	}
	t.Run("whole", func(t *testing.T) {
		seen := [NumVerdicts]bool{}
		for _, s := range samples() {
			sameParse(t, p, s.name, s.frame)
			var i packet.Info
			packet.Parse(s.frame, &i)
			seen[i.Verdict] = true
		}
		seen[packet.Truncated] = true // below
		for v, ok := range seen {
			if !ok {
				t.Errorf("no sample is %s", VerdictName(v))
			}
		}
	})
	t.Run("cut at every byte", func(t *testing.T) {
		for _, s := range samples() {
			for n := minRun; n < len(s.frame); n++ {
				sameParse(t, p, s.name, s.frame[:n])
			}
		}
	})
	t.Run("mutated", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		all := samples()
		for range 20000 {
			f := bytes.Clone(all[rng.IntN(len(all))].frame)
			for range 1 + rng.IntN(4) {
				at := 12 + rng.IntN(min(len(f), 140)-12)
				switch rng.IntN(3) {
				case 0:
					f[at] = byte(rng.Uint32())
				case 1:
					f[at] ^= 1 << rng.IntN(8)
				default: // a number that means something
					f[at] = []byte{0, 4, 5, 6, 17, 43, 44, 60, 0x45, 0x60, 0x81, 0xff}[rng.IntN(12)]
				}
			}
			if rng.IntN(4) == 0 {
				f = f[:minRun+rng.IntN(len(f)-minRun)]
			}
			sameParse(t, p, "mutated", f)
		}
	})
	t.Run("long", func(t *testing.T) {
		for _, n := range []int{1460, 2000, 3000} {
			sameParse(t, p, "long", ip4(6, 0x4000, nil, tcp(5, 0x10, n)))
		}
	})
}

// moved returns which counters changed.
func moved(t *testing.T, p *Program, fn func()) map[string]uint64 {
	t.Helper()
	before, err := p.Outcomes()
	if err != nil {
		t.Fatal(err)
	}
	fn()
	after, err := p.Outcomes()
	if err != nil {
		t.Fatal(err)
	}
	d := map[string]uint64{}
	for k := range after {
		if after[k] != before[k] {
			d[k] = after[k] - before[k]
		}
	}
	return d
}

func TestEveryFrameCountsUnderOneOutcome(t *testing.T) {
	data := func() []byte { return ip4(6, 0x4000, nil, tcp(8, 0x18, 100)) }
	to := func(mac [6]byte, f []byte) []byte { copy(f, mac[:]); return f }
	inVLAN := func(tci int) []byte { return tagged(0x8100, tci, data()) }
	const quietVLAN = 200
	for _, c := range []struct {
		name    string
		frame   []byte
		outcome string
		action  uint32
	}{
		{"for the vm", data(), "redirect", 4},
		{"udp for the vm", ip4(17, 0, nil, make([]byte, 30)), "redirect", 4},
		{"for the vm in the vlan", inVLAN(testVLAN), "redirect", 4},
		{"with a priority", inVLAN(testVLAN | 0xe000), "redirect", 4},
		{"with a priority tag", inVLAN(0xe000), "redirect", 4},
		{"for another vlan", inVLAN(testVLAN + 1), "pass_host", 2},
		{"for the host", to([6]byte{2, 0, 0, 0, 0, 9}, data()), "pass_host", 2},
		{"broadcast", to([6]byte{255, 255, 255, 255, 255, 255}, data()), "pass_multicast", 2},
		{"multicast", to([6]byte{1, 0, 0x5e, 0, 0, 1}, data()), "pass_multicast", 2},
		{"service tag", tagged(0x88a8, testVLAN, data()), "pass_vlan_foreign", 2},
		{"service tag with id 0", tagged(0x88a8, 0, data()), "pass_vlan_foreign", 2},
		{"a tag behind a priority tag", tagged(0x8100, 0, inVLAN(testVLAN)), "pass_vlan_foreign", 2},
		{"two tags", tagged(0x8100, testVLAN, inVLAN(7)), "redirect", 4},
		{"for a vm that is not steered", inVLAN(quietVLAN), "pass_port", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := loadForTest(t)
			p.mustSetPort(t, 0, PortValue{Port: 3, Flags: FlagSteer})
			p.mustSetPort(t, testVLAN, PortValue{Port: 4, Flags: FlagSteer})
			p.mustSetPort(t, quietVLAN, PortValue{Port: 5})
			socketFor(t, p)
			var act uint32
			got := moved(t, p, func() { act, _ = p.run(t, c.frame) })
			if act != c.action || len(got) != 1 || got[c.outcome] != 1 {
				t.Errorf("action %d, counted %v; want %d and one %s", act, got, c.action, c.outcome)
			}
		})
	}
	t.Run("without a socket", func(t *testing.T) {
		p := loadForTest(t)
		p.mustSetPort(t, 0, PortValue{Port: 3, Flags: FlagSteer})
		fd := socketFor(t, p)
		if err := p.ClearSocket(0); err != nil {
			t.Fatal(err)
		}
		if err := p.ClearSocket(0); err != nil {
			t.Errorf("clearing twice: %v", err)
		}
		var act uint32
		got := moved(t, p, func() { act, _ = p.run(t, data()) })
		if act != 2 || len(got) != 1 || got["pass_no_socket"] != 1 {
			t.Errorf("action %d, counted %v", act, got)
		}
		if err := p.SetSocket(0, fd); err != nil {
			t.Fatal(err)
		}
		if act, _ = p.run(t, data()); act != 4 {
			t.Errorf("action %d after the socket came back", act)
		}
		if err := p.SetSocket(1, fd); err == nil {
			t.Error("a queue beyond the map was taken")
		}
	})
}

// socketFor puts an AF_XDP socket into queue 0.
func socketFor(t testing.TB, p *Program) int {
	t.Helper()
	fd := unboundSocket(t)
	if err := p.SetSocket(0, fd); err != nil {
		t.Fatal(err)
	}
	return fd
}

// unboundSocket is an AF_XDP socket that is not bound: BPF_PROG_TEST_RUN does not deliver.
func unboundSocket(t testing.TB) int {
	t.Helper()
	netnstest.Need(t, netnstest.AFXDP)
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestFlowsAreCounted(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3, Flags: FlagSteer})
	p.mustSetPort(t, testVLAN, PortValue{Port: 4})
	var bytes4, payload4 uint64
	for _, c := range []struct {
		flags   byte
		payload int
	}{{0x02, 0}, {0x10, 100}, {0x10, 1400}, {0x19, 7}} {
		f := padded(60, ip4(6, 0x4000, nil, tcp(8, c.flags, c.payload)))
		p.run(t, f)
		bytes4, payload4 = bytes4+uint64(len(f)), payload4+uint64(c.payload)
	}
	p.run(t, padded(200, ip4(6, 0x4000, nil, tcp(8, 0x10, 10)))) // a trailer
	bytes4, payload4 = bytes4+200, payload4+10
	p.run(t, ip4(17, 0, nil, make([]byte, 30)))                  // not TCP: no flow
	p.run(t, ip4(6, 0x00b9, nil, tcp(5, 0, 30)))                 // a fragment without ports
	p.run(t, tagged(0x8100, testVLAN, ip6(6, tcp(5, 0x10, 50)))) // not steered, but counted

	rows, err := p.readFlows(t, 3)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 {
		t.Fatalf("%d flows: %+v", len(rows), rows)
	}
	k, s := rows[0].Key, rows[0].Stats
	if k.Family != 4 || k.Dir != DirToGuest ||
		k.Src() != netip.MustParseAddrPort("10.0.0.2:40000") || k.Dst() != netip.MustParseAddrPort("10.0.0.1:443") {
		t.Errorf("key %+v", k)
	}
	want := [NumVerdicts]uint64{packet.OK: 4, packet.Trailer: 1}
	if s.Packets() != 5 || s.Verdicts != want || s.Bytes != bytes4 || s.PayloadBytes != payload4 || s.TCPFlags != 0x1b {
		t.Errorf("stats %+v, want %d bytes, %d of payload", s, bytes4, payload4)
	}
	if s.FirstNS == 0 || s.LastNS < s.FirstNS {
		t.Errorf("first %d, last %d", s.FirstNS, s.LastNS)
	}
	if rows, err = p.readFlows(t, 4); err != nil || len(rows) != 1 {
		t.Fatalf("%d flows of the other VM: %+v, %v", len(rows), rows, err)
	}
	k, s = rows[0].Key, rows[0].Stats
	if k.Src() != netip.MustParseAddrPort("[fd00::2]:40000") || s.Packets() != 1 || s.PayloadBytes != 50 {
		t.Errorf("second flow %+v %+v", k, s)
	}
}

func TestManyFlowsAreAllRead(t *testing.T) {
	p := loadForTest(t)
	p.mustSetPort(t, 0, PortValue{Port: 3})
	const n = 2500 // more than two batches, fewer than the map
	for i := range n {
		seg := tcp(5, 0x10, 0)
		seg[0], seg[1] = byte(i>>8), byte(i)
		p.run(t, padded(60, ip4(6, 0x4000, nil, seg)))
	}
	rows, err := p.readFlows(t, 3)
	if err != nil {
		t.Fatal(err)
	}
	ports := map[uint16]bool{}
	for _, r := range rows {
		ports[r.Key.SrcPort] = true
		if r.Stats.Packets() != 1 {
			t.Errorf("flow %d has %d packets", r.Key.SrcPort, r.Stats.Packets())
		}
	}
	if len(rows) != n || len(ports) != n {
		t.Errorf("%d rows, %d flows, want %d", len(rows), len(ports), n)
	}
}
