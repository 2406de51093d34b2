package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// datagrams is a guest that takes superframes of UDP.
func datagrams() flowtable.PortConfig {
	c := negotiated(flowtable.GRO)
	c.UDP, c.USO4, c.USO6 = true, true, true
	return c
}

// udpRun feeds a table of one port with datagrams, and judges each frame that leaves: it is the packets as they came, or a frame of which
// any that may cut it makes those packets again, bit for bit.
type udpRun struct {
	t    *testing.T
	tab  *flowtable.Table
	cfg  flowtable.PortConfig
	now  int64
	in   [][]byte
	left []bool
	last map[string]int // by addresses and ports
	out  []string
	sfs  []output
}

func newUDPRun(t *testing.T, c flowtable.PortConfig, cfg flowtable.Config) *udpRun {
	t.Helper()
	if cfg.Slots == 0 {
		cfg.Slots = 64
	}
	cfg.Ports = 1
	r := &udpRun{t: t, cfg: c, now: 1e9, last: map[string]int{}}
	var err error
	if r.tab, err = flowtable.New(cfg, r); err == nil {
		err = r.tab.SetPort(0, c, r.now)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *udpRun) add(frame []byte) {
	p := flowtable.Packet{Data: bytes.Clone(frame), Ref: uint64(len(r.in))}
	packet.Parse(frame, &p.Info)
	r.in, r.left = append(r.in, frame), append(r.left, false)
	r.tab.Add(&p, r.now)
}

// flowOfUDP names the flow of a frame, "" where its ports cannot be read.
func flowOfUDP(frame []byte) string {
	var i packet.Info
	packet.Parse(frame, &i)
	proto := "tcp"
	if i.Verdict == packet.NotTCP {
		packet.ParseUDP(frame, len(frame), &i)
		proto = "udp"
	}
	if !i.Keyed {
		return ""
	}
	from, to := i.L3+12, i.L3+20
	if i.Family == 6 {
		from, to = i.L3+8, i.L3+40
	}
	return fmt.Sprintf("%s %v %d %x %x", proto, i.Tagged, i.TCI&0xfff, frame[from:to], frame[i.L4:i.L4+4])
}

func (r *udpRun) Deliver(sf *flowtable.Superframe) {
	r.t.Helper()
	o := output{Superframe: *sf, frame: bytes.Join(sf.Frags, nil)}
	o.Refs = append([]uint64(nil), sf.Refs...)
	r.tab.Ledger(0).Deliver(&sf.Entry)
	r.out, r.sfs = append(r.out, o.String()), append(r.sfs, o)
	for _, ref := range o.Refs {
		if r.left[ref] {
			r.t.Errorf("%v: packet %d left twice", &o, ref)
		}
		r.left[ref] = true
		if flow := flowOfUDP(r.in[ref]); flow != "" {
			if last, ok := r.last[flow]; ok && last > int(ref) {
				r.t.Errorf("%v: packet %d left behind %d of its flow", &o, ref, last)
			}
			r.last[flow] = int(ref)
		}
	}
	if o.TCP {
		r.t.Errorf("%v is called TCP", &o)
	}
	if len(o.Refs) == 1 {
		if !bytes.Equal(o.frame, r.in[o.Refs[0]]) || o.GSOType != 0 || o.Segments != 1 {
			r.t.Errorf("%v: a lone packet was changed", &o)
		}
		return
	}
	r.judge(&o)
}

// judge cuts a frame in two ways and compares the pieces with the packets.
func (r *udpRun) judge(o *output) {
	r.t.Helper()
	l4 := int(o.CsumStart)
	switch {
	case o.GSOType != udpL4, o.Flags != needsCsum, o.CsumOffset != 6, int(o.HdrLen) != l4+8, o.Segments != len(o.Refs), len(o.Refs) > 64, len(o.frame)-14 > 65535+4:
		r.t.Errorf("%v: header %+v", o, o.Superframe)
		return
	}
	var s flowtable.Segmenter
	if err := s.Init([][]byte{o.frame[:20], o.frame[20:]}, flowtable.GSO{Type: o.GSOType, Size: o.GSOSize, FixedID: o.FixedID}); err != nil {
		r.t.Errorf("%v: %v", o, err)
		return
	}
	head, payload := o.frame[:l4], o.frame[l4+8:]
	dst := make([]byte, 1<<16)
	for i, ref := range o.Refs {
		want := bytes.Clone(r.in[ref])
		n := min(len(payload), int(o.GSOSize))
		want = want[:l4+8+n] // without padding
		// By hand: the head's headers with lengths, ID and sums for this piece.
		piece := append(append(bytes.Clone(head), o.frame[l4:l4+4]...), 0, 0, 0, 0)
		piece = append(piece, payload[:n]...)
		payload = payload[n:]
		ip := 14
		if piece[12] == 0x81 {
			ip = 18
		}
		binary.BigEndian.PutUint16(piece[l4+4:], uint16(8+n))
		pseudo := make([]byte, 8)
		binary.BigEndian.PutUint32(pseudo, uint32(8+n))
		pseudo[7] = 17
		addrs := piece[ip+12 : ip+20]
		if piece[ip]>>4 == 6 {
			binary.BigEndian.PutUint16(piece[ip+4:], uint16(8+n))
			addrs = piece[ip+8 : ip+40]
		} else {
			binary.BigEndian.PutUint16(piece[ip+2:], uint16(28+n))
			if !o.FixedID {
				binary.BigEndian.PutUint16(piece[ip+4:], binary.BigEndian.Uint16(head[ip+4:])+uint16(i))
			}
			binary.BigEndian.PutUint16(piece[ip+10:], pt.HeaderCheck(piece[ip:ip+20]))
		}
		sum := ^pt.Sum(addrs, pseudo, piece[l4:])
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(piece[l4+6:], sum)
		if !bytes.Equal(piece, want) {
			r.t.Errorf("%v: piece %d by hand\n%x\nit was\n%x", o, i, piece[:l4+8], want[:l4+8])
		}
		m, ok, err := s.Next(dst)
		if err != nil || !ok || !bytes.Equal(dst[:m], want) {
			r.t.Errorf("%v: the Segmenter's piece %d: %v %v\n%x\nit was\n%x", o, i, ok, err, dst[:m], want)
		}
	}
	if len(payload) != 0 {
		r.t.Errorf("%v: %d bytes are nobody's", o, len(payload))
	}
}

func (r *udpRun) close() {
	r.t.Helper()
	r.now += 1000
	r.tab.Close(flowtable.ReasonStop, r.now)
	for i, left := range r.left {
		if !left {
			r.t.Errorf("packet %d never left", i)
		}
	}
	if n := r.tab.Ledger(0).Unexplained(); n != 0 || r.tab.Held() != 0 {
		r.t.Errorf("%d packets unexplained, %d held", n, r.tab.Held())
	}
}

// udpRule is a row: a train of five with a change, and what comes out. Names are those of docs/rules.md.
type udpRule struct {
	name   string
	in     func(b pt.UDP) []pt.UDP
	want   string
	family int
	set    func(c *flowtable.PortConfig)
}

type udpChange = func(u *pt.UDP)

func udpOne(f udpChange) func(pt.UDP) []pt.UDP {
	return func(b pt.UDP) []pt.UDP { t := b.Train(5); f(&t[2]); return t }
}

func udpSince(f udpChange) func(pt.UDP) []pt.UDP {
	return func(b pt.UDP) []pt.UDP {
		t := b.Train(5)
		for i := 2; i < 5; i++ {
			f(&t[i])
		}
		return t
	}
}

func udpAll(f udpChange) func(pt.UDP) []pt.UDP {
	return func(b pt.UDP) []pt.UDP {
		t := b.Train(5)
		for i := range t {
			f(&t[i])
		}
		return t
	}
}

func TestRulesOfUDP(t *testing.T) {
	steady := udpAll(func(*pt.UDP) {})
	rows := []udpRule{
		{name: "a train merges", in: steady, want: merged},
		{name: "to a VXLAN", in: udpAll(func(u *pt.UDP) { u.DstPort = 4789 }), want: each("not_tcp")},
		{name: "to Linux' VXLAN", in: udpAll(func(u *pt.UDP) { u.DstPort = 8472 }), want: each("not_tcp")},
		{name: "to a GENEVE", in: udpAll(func(u *pt.UDP) { u.DstPort = 6081 }), want: each("not_tcp")},
		{name: "to MPLS in UDP", in: udpAll(func(u *pt.UDP) { u.DstPort = 6635 }), want: each("not_tcp")},
		{name: "from a VXLAN's port", in: udpAll(func(u *pt.UDP) { u.SrcPort = 4789 }), want: merged},
		{name: "zero checksum", in: udpOne(func(u *pt.UDP) { u.NoSum = true }), want: closePass("zero_checksum")},
		{name: "zero checksum on all", in: udpAll(func(u *pt.UDP) { u.NoSum = true }), want: each("zero_checksum")},
		{name: "bad UDP checksum", in: udpOne(func(u *pt.UDP) { u.BadUDP = true }), want: closePass("bad_udp_checksum")},
		{name: "bad IPv4 header checksum", family: 4, in: udpOne(func(u *pt.UDP) { u.IP.BadIP = true }), want: closePass("bad_ip_checksum")},
		{name: "partial checksum", in: udpOne(func(u *pt.UDP) { u.Partial = true }), want: closePass("partial_checksum")},
		{name: "shorter last", in: udpOne(func(u *pt.UDP) { u.Len -= 30 }), want: "0+1+2 short, 3+4 stop"},
		{name: "larger", in: udpSince(func(u *pt.UDP) { u.Len++ }), want: closeStart("larger")},
		{name: "empty", in: udpOne(func(u *pt.UDP) { u.Len = 0 }), want: closePass("empty")},
		{name: "one byte each", in: udpAll(func(u *pt.UDP) { u.Len = 1 }), want: merged},
		{name: "TOS", in: udpSince(func(u *pt.UDP) { u.IP.TOS = 0xb8 }), want: closeStart("dscp_change")},
		{name: "CE mark", in: udpSince(func(u *pt.UDP) { u.IP.TOS = 3 }), want: closeStart("ecn_change")},
		{name: "TTL", in: udpSince(func(u *pt.UDP) { u.IP.TTL = 63 }), want: closeStart("ttl_change")},
		{name: "DF", family: 4, in: udpSince(func(u *pt.UDP) { u.IP.NoDF = true }), want: closeStart("df_change")},
		{name: "flow label", family: 6, in: udpSince(func(u *pt.UDP) { u.IP.FlowLabel = 9 }), want: closeStart("flow_label")},
		{name: "source MAC", in: udpSince(func(u *pt.UDP) { u.SrcMAC = [6]byte{2, 2, 2, 2, 2, 2} }), want: closeStart("mac_change")},
		{name: "VLAN priority", in: func(b pt.UDP) []pt.UDP {
			b.Tags = []uint16{5}
			return udpSince(func(u *pt.UDP) { u.Tags = []uint16{0x6005} })(b)
		}, want: closeStart("vlan_priority")},
		{name: "tagged", in: udpAll(func(u *pt.UDP) { u.Tags = []uint16{0x6005} }), want: merged},
		{name: "ID jumps", family: 4, in: udpSince(func(u *pt.UDP) { u.IP.ID += 7 }), want: closeStart("ip_id")},
		{name: "ID fixed, DF", family: 4, in: udpAll(func(u *pt.UDP) { u.IP.ID = 9 }), want: merged},
		{name: "ID fixed, no DF", family: 4, in: udpAll(func(u *pt.UDP) { u.IP.ID, u.IP.NoDF = 9, true }), want: "0 ip_id, 1 ip_id, 2 ip_id, 3 ip_id, 4 stop"},
		{name: "other port", in: func(b pt.UDP) []pt.UDP {
			t := udpAll(func(u *pt.UDP) { u.IP.ID = 9 })(b)
			t[2].SrcPort = 9
			return t
		}, want: "0+1+3+4 stop, 2 stop"},
		{name: "UDP length too long", in: udpOne(func(u *pt.UDP) { u.LenDelta = 1 }), want: closePass("malformed")},
		{name: "UDP length too short", in: udpOne(func(u *pt.UDP) { u.LenDelta = -1 }), want: closePass("malformed")},
		{name: "UDP length 0", in: udpOne(func(u *pt.UDP) { u.LenDelta = -8 - u.Len }), want: closePass("malformed")},
		{name: "first fragment", family: 4, in: udpOne(func(u *pt.UDP) { u.IP.MF = true }), want: closePass("fragment")},
		{name: "later fragment", family: 4, in: udpOne(func(u *pt.UDP) { u.IP.FragOffset = 9 }), want: closePass("fragment")},
		{name: "later fragment", family: 6, in: udpOne(func(u *pt.UDP) { u.IP.Ext = []pt.Ext{pt.FragmentHeader(9, true, 1)} }), want: closePass("fragment")},
		{name: "IP options", family: 4, in: udpOne(func(u *pt.UDP) { u.IP.IPOpts = []byte{1, 1, 1, 1} }), want: closePass("ip_options")},
		{name: "extension header", family: 6, in: udpOne(func(u *pt.UDP) { u.IP.Ext = []pt.Ext{pt.HopByHop()} }), want: closePass("ext_header")},
		{name: "reserved flag", family: 4, in: udpOne(func(u *pt.UDP) { u.IP.Reserved = true }), want: closePass("reserved_flag")},
		{name: "padding", in: udpAll(func(u *pt.UDP) { u.Len, u.Pad = 3, true }), want: merged},
		{name: "policy off", in: steady, set: func(c *flowtable.PortConfig) { c.UDP = false }, want: each("not_tcp")},
		{name: "nothing negotiated", in: steady, set: func(c *flowtable.PortConfig) { c.USO4, c.USO6 = false, false }, want: each("not_tcp")},
		{name: "the other family negotiated", family: 4, in: steady, set: func(c *flowtable.PortConfig) { c.USO4 = false }, want: each("not_negotiated")},
		{name: "coalescing off", in: steady, set: func(c *flowtable.PortConfig) { c.Coalesce = false }, want: each("not_tcp")},
		{name: "port excluded", in: steady, set: func(c *flowtable.PortConfig) { c.ExcludePorts = []uint16{8000} }, want: each("port_excluded")},
		{name: "max_segments", in: steady, set: func(c *flowtable.PortConfig) { c.MaxSegments = 3 }, want: "0+1+2 max_segments, 3+4 stop"},
		{name: "max_bytes", in: steady, set: func(c *flowtable.PortConfig) { c.MaxBytes = 350 }, want: "0+1+2 max_bytes, 3+4 stop"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			for _, v6 := range []bool{false, true} {
				if row.family == 4 && v6 || row.family == 6 && !v6 {
					continue
				}
				c := datagrams()
				if row.set != nil {
					row.set(&c)
				}
				r := newUDPRun(t, c, flowtable.Config{})
				for _, u := range row.in(pt.UDP{V6: v6, IP: pt.TCP{ID: 7}, Len: 100}) {
					r.now += 1000
					r.add(u.Frame())
				}
				r.close()
				if got := strings.Join(r.out, ", "); got != row.want {
					t.Errorf("ipv6=%v\n got %s\nwant %s", v6, got, row.want)
				}
			}
		})
	}
}

// A frame has at most 64 datagrams, which is what Linux cuts, and at most 65,535 bytes of IP.
func TestSuperframesOfUDPAreBounded(t *testing.T) {
	for size, want := range map[int]int{1: 64, 1000: 64, 1200: 54, 8000: 8, 32000: 2, 65507: 1} {
		r := newUDPRun(t, datagrams(), flowtable.Config{Slots: 256})
		for _, u := range (pt.UDP{Len: size}).Train(130) {
			r.add(u.Frame())
		}
		r.close()
		if n := len(r.sfs[0].Refs); n != want {
			t.Errorf("%d bytes each: %d in the first frame, want %d", size, n, want)
		}
	}
}

// A TCP flow and a UDP flow of the same addresses and ports are two.
func TestUDPAndTCPOfTheSamePortsAreApart(t *testing.T) {
	tab := newRunner(t, flowtable.Config{}, datagrams())
	count := 0
	for i, u := range (pt.UDP{Len: 100}).Train(3) {
		for _, f := range [][]byte{u.Frame(), (pt.TCP{Len: 100}).Train(3)[i].Frame()} {
			p := flowtable.Packet{Data: f, Ref: uint64(count)}
			packet.Parse(f, &p.Info)
			count++
			tab.tab.Add(&p, tab.now)
		}
	}
	if n := tab.tab.Open(); n != 2 {
		t.Errorf("%d superframes are open, want 2", n)
	}
}

// A Packet is used again and again, and XDP says nothing of UDP: what the table wrote into one for a datagram is not believed of the next.
func TestASegmentBehindADatagramInTheSamePacketIsTCP(t *testing.T) {
	c := datagrams()
	c.USO4, c.USO6 = false, true // so that a segment that is taken for a datagram would not merge
	r := newRunner(t, flowtable.Config{}, c)
	var p flowtable.Packet
	for i, frame := range append([][]byte{pt.UDP{V6: true, Len: 100}.Frame()}, pt.Frames((pt.TCP{Len: 100}).Train(3)...)...) {
		var info packet.Info
		packet.Parse(frame, &info)
		info.UDP = p.Info.UDP
		p.Data, p.Ref, p.Info = frame, uint64(i), info
		r.in, r.gone, r.tails = append(r.in, input{frame: bytes.Clone(frame), info: info, at: r.now}), append(r.gone, false), append(r.tails, 0)
		r.tab.Add(&p, r.now)
	}
	if n := r.tab.Open(); n != 2 {
		t.Errorf("%d superframes are open, want one of each protocol", n)
	}
}

// What was verified is called valid, and nothing else.
func TestDataValidOnlyOnDatagramsThatWereVerified(t *testing.T) {
	for _, c := range []struct {
		change udpChange
		want   uint8
	}{
		{func(*pt.UDP) {}, dataValid}, {func(u *pt.UDP) { u.Len = 0 }, dataValid},
		{func(u *pt.UDP) { u.BadUDP = true }, 0}, {func(u *pt.UDP) { u.NoSum = true }, 0}, {func(u *pt.UDP) { u.Partial = true }, 0},
		{func(u *pt.UDP) { u.LenDelta = 2 }, 0},
	} {
		r := newUDPRun(t, datagrams(), flowtable.Config{})
		u := pt.UDP{Len: 100}
		c.change(&u)
		r.add(u.Frame())
		r.close()
		if r.sfs[0].Flags != c.want {
			t.Errorf("%v: flags %d, want %d", &r.sfs[0], r.sfs[0].Flags, c.want)
		}
	}
}

// Random datagrams, whole and damaged, with TCP between them, with room and without: judge and close find nothing wrong.
func TestUDPPropertiesOnRandomTraffic(t *testing.T) {
	rounds := 60
	if testing.Short() || raceEnabled {
		rounds = 15
	}
	for seed := range uint64(rounds) {
		randomDatagrams(t, &source{rnd: rand.New(rand.NewPCG(seed, 9))}, 400)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzDatagrams(f *testing.F) {
	f.Add([]byte("datagrams of many kinds, one behind the other"))
	f.Fuzz(func(t *testing.T, b []byte) { randomDatagrams(t, &source{data: b, read: true}, 200) })
}

func randomDatagrams(t *testing.T, s *source, steps int) {
	t.Helper()
	c := datagrams()
	c.Hold = []time.Duration{0, 50 * time.Microsecond}[s.n(2)]
	c.FixedID, c.MaxBytes = !s.one(4), []int{flowtable.MaxIPLength, 5000}[s.n(2)]
	cfg := flowtable.Config{Slots: 64, MaxHeld: 4096}
	if s.one(3) {
		cfg = flowtable.Config{Slots: 1 + s.n(5), MaxHeld: 1 + s.n(10)}
	}
	r := newUDPRun(t, c, cfg)
	var flows []pt.UDP
	for i := range 1 + s.n(5) {
		flows = append(flows, pt.UDP{V6: s.one(2), SrcPort: uint16(i), Len: 1 + s.n(1400), Seq: uint32(i) << 16, IP: pt.TCP{ID: uint16(s.n(1 << 16)), NoDF: s.one(3)}})
	}
	for range steps {
		if s.done() {
			break
		}
		r.now += int64(s.n(3000))
		r.tab.Expire(r.now)
		f := &flows[s.n(len(flows))]
		u := *f
		*f = f.Next()
		switch s.n(40) {
		case 0:
			u.Len = s.n(1500)
		case 1:
			u.NoSum = true
		case 2:
			u.BadUDP = true
		case 3:
			u.IP.TOS = uint8(s.n(256))
		case 4:
			u.LenDelta = s.n(40) - 20
		case 5:
			u.IP.MF = true
		case 6:
			u.IP.FragOffset = uint16(s.n(1 << 13))
		case 7:
			u.IP.ID = uint16(s.n(1 << 16))
		case 8:
			r.tab.EndBurst(r.now)
		case 9:
			u.Pad = true
		case 10:
			u.Tags = []uint16{uint16(s.n(1 << 16))}
		}
		frame := u.Frame()
		if s.one(50) && len(frame) > 0 {
			frame[s.n(len(frame))] ^= 1 << s.n(8)
		}
		if s.one(60) {
			frame = frame[:s.n(len(frame)+1)]
		}
		r.add(frame)
	}
	r.close()
}
