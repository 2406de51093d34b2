package flowtable_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// The cases of the Linux kernel's GRO self-test (tools/testing/selftests/net/lib/gro.c), as its sender sends them, with its
// headers: ports 1500 to 8000, sequence and acknowledgement 100, TTL 8, DF, ID 0, window maximal, payload of 100 bytes.
// What has to come out is the payload lengths, which is what the self-test's receiver compares.

// selfHold is what the self-test sets up: gro_flush_timeout 200 us.
const selfHold = 200 * time.Microsecond

type selfCase struct {
	name     string
	in       func(b pt.TCP) []any
	gro, rsc string // payload lengths; rsc "": as gro
	family   int
	set      func(c *flowtable.PortConfig)
}

// at is a packet of n bytes at an offset into the stream, with the IPv4 ID of the self-test: fixed at 0 unless told.
func at(b pt.TCP, off uint32, n int, f ...change) pt.TCP {
	b.Seq += off
	b.Len = n
	for _, g := range f {
		g(&b)
	}
	return b
}

func selfCases() []selfCase {
	tos := func(v uint8) change { return func(p *pt.TCP) { p.TOS = v } }
	opts := func(o []byte) change { return func(p *pt.TCP) { p.Opts = o } }
	ids := func(noDF bool, ids ...uint16) func(pt.TCP) []any {
		return func(b pt.TCP) (s []any) {
			b.NoDF = noDF
			for i, id := range ids {
				b.ID = id
				s = append(s, at(b, uint32(100*i), 100))
			}
			return s
		}
	}
	// 2 data, an empty packet with a flag at offset 0, 2 data behind a hole of 100.
	flagged := func(f uint16) func(pt.TCP) []any {
		return func(b pt.TCP) []any {
			return packets(at(b, 0, 100), at(b, 100, 100), at(b, 0, 0, flags(f)), at(b, 300, 100), at(b, 400, 100))
		}
	}
	two := func(f change) func(pt.TCP) []any {
		return func(b pt.TCP) []any { return packets(at(b, 0, 100), at(b, 100, 100, f)) }
	}
	middle := func(f change) func(pt.TCP) []any {
		return func(b pt.TCP) []any { return packets(at(b, 0, 100), at(b, 100, 100, f), at(b, 200, 100)) }
	}
	five := func(f func(i int) uint16) func(pt.TCP) []any {
		return func(b pt.TCP) (s []any) {
			for i := range 5 {
				s = append(s, at(b, uint32(100*i), 100, flags(f(i))))
			}
			return s
		}
	}
	cwr := five(func(i int) uint16 {
		if i == 1 || i == 2 {
			return pt.ACK | pt.CWR
		}
		return pt.ACK
	})
	// 16 full segments, then remainders at 16 and at 17 times the segment: the second is never contiguous.
	large := func(more int) func(pt.TCP) []any {
		return func(b pt.TCP) (s []any) {
			mss, rem := 4056, 599
			if b.V6 {
				mss, rem = 4036, 899
			}
			for i := range 16 {
				s = append(s, at(b, uint32(i*mss), mss))
			}
			return append(s, at(b, uint32(16*mss), rem+more), at(b, uint32(17*mss), rem+more))
		}
	}
	const flows = 32
	capacity := func(b pt.TCP) (s []any) {
		for i := range 2 {
			for f := range uint16(flows) {
				p := at(b, uint32(200*i), 200)
				p.SrcPort = 2000 + f
				if i == 1 {
					p.Flags = pt.ACK | pt.PSH
				}
				s = append(s, p)
			}
		}
		return s
	}
	pppoe := func(b pt.TCP) []any {
		f := pt.Ethernet(0x8864, append([]byte{0x11, 0, 0, 1, 0, 142, 0, 0x21}, at(b, 0, 100).Frame()[14:]...)...)
		return []any{f, f}
	}
	return []selfCase{
		{name: "data_same", in: two(func(p *pt.TCP) {}), gro: "200"},
		{name: "data_lrg_sml", in: func(b pt.TCP) []any { return packets(at(b, 0, 100), at(b, 100, 50)) }, gro: "150"},
		{name: "data_lrg_1byte", in: func(b pt.TCP) []any { return packets(at(b, 0, 100), at(b, 100, 1)) }, gro: "101"},
		{name: "data_lrg_1byte padded", in: func(b pt.TCP) []any { b.Pad = true; return packets(at(b, 0, 100), at(b, 100, 1)) }, gro: "101"},
		{name: "data_sml_lrg", in: func(b pt.TCP) []any { return packets(at(b, 0, 50), at(b, 50, 100)) }, gro: "50,100", rsc: "150"},
		{name: "data_burst", in: func(b pt.TCP) []any {
			return []any{at(b, 0, 100), at(b, 100, 100), wait(100 * time.Millisecond), at(b, 200, 100), at(b, 300, 100)}
		}, gro: "200,200"},
		{name: "ack", in: func(b pt.TCP) []any {
			return packets(at(b, 0, 0), at(b, 0, 0), at(b, 0, 0, func(p *pt.TCP) { p.Ack++ }))
		}, gro: "0,0,0"},
		{name: "flags_psh", in: five(func(i int) uint16 {
			if i == 2 {
				return pt.ACK | pt.PSH
			}
			return pt.ACK
		}), gro: "300,200", rsc: "500"},
		{name: "flags_syn", in: flagged(pt.ACK | pt.SYN), gro: "200,0,200"},
		{name: "flags_rst", in: flagged(pt.ACK | pt.RST), gro: "200,0,200"},
		{name: "flags_urg", in: flagged(pt.ACK | pt.URG), gro: "200,0,200"},
		{name: "flags_cwr", in: cwr, gro: "100,100,100,200"},
		{name: "flags_cwr, GUEST_ECN", in: cwr, set: ecn, gro: "100,100,100,200", rsc: "100,200,200"},
		{name: "tcp_csum", in: two(func(p *pt.TCP) { p.BadTCP = true }), gro: "100,100"},
		{name: "tcp_seq", in: two(func(p *pt.TCP) { p.Seq++ }), gro: "100,100"},
		{name: "tcp_ts", in: func(b pt.TCP) []any {
			return packets(at(b, 0, 100, opts(pt.Timestamps(1, 1))), at(b, 100, 100, opts(pt.Timestamps(1, 1))), at(b, 200, 100, opts(pt.Timestamps(2, 1))),
				at(b, 300, 100, opts(pt.TimestampsLast(2, 1))), at(b, 400, 100, opts(pt.TimestampsApart(2, 1))))
		}, gro: "200,100,100,100"},
		{name: "tcp_opt", in: func(b pt.TCP) []any {
			return packets(at(b, 0, 100, opts(pt.Timestamps(1, 1))), at(b, 100, 100, opts(pt.Timestamps(1, 1))), at(b, 200, 100, opts(pt.WindowScale(3))))
		}, gro: "200,100"},
		{name: "ip_ecn", in: two(tos(2)), gro: "100,100"},
		{name: "ip_tos", family: 4, in: two(tos(1)), gro: "100,100"},
		{name: "ip_tos", family: 6, in: two(tos(0x10)), gro: "100,100"},
		{name: "ip_ttl", in: two(func(p *pt.TCP) { p.TTL = 9 }), gro: "100,100", rsc: "200"},
		{name: "ip_opt", family: 4, in: middle(func(p *pt.TCP) { p.IPOpts = []byte{0x86, 4, 0, 0} }), gro: "100,100,100"},
		{name: "ip_frag4", family: 4, in: two(func(p *pt.TCP) { p.MF = true }), gro: "100,100"},
		{name: "ip_csum", family: 4, in: middle(func(p *pt.TCP) { p.BadIP = true }), gro: "100,100,100"},
		{name: "ip_id_df1_inc", family: 4, in: ids(false, 8, 9), gro: "200"},
		{name: "ip_id_df1_fixed", family: 4, in: ids(false, 8, 8), gro: "200"},
		{name: "ip_id_df0_inc", family: 4, in: ids(true, 8, 9), gro: "200"},
		{name: "ip_id_df0_fixed", family: 4, in: ids(true, 8, 8), gro: "100,100", rsc: "200"},
		{name: "ip_id_df1_inc_fixed", family: 4, in: ids(false, 8, 9, 9), gro: "200,100", rsc: "300"},
		{name: "ip_id_df1_fixed_inc", family: 4, in: ids(false, 8, 8, 9), gro: "200,100", rsc: "300"},
		{name: "ip_frag6", family: 6, in: func(b pt.TCP) []any {
			return []any{at(b, 0, 100), at(b, 100, 100), wait(time.Second),
				at(b, 200, 100, func(p *pt.TCP) { p.Ext = []pt.Ext{pt.FragmentHeader(0, false, 1)} }), at(b, 300, 100)}
		}, gro: "200,100,100"},
		{name: "ip_v6ext_same", family: 6, in: func(b pt.TCP) []any { b.Ext = []pt.Ext{pt.DstOpts(1)}; return two(func(p *pt.TCP) {})(b) }, gro: "100,100"},
		{name: "ip_v6ext_diff", family: 6, in: func(b pt.TCP) []any {
			b.Ext = []pt.Ext{pt.DstOpts(1)}
			return two(func(p *pt.TCP) { p.Ext = []pt.Ext{pt.DstOpts(2)} })(b)
		}, gro: "100,100"},
		{name: "large_max", family: 4, in: large(0), gro: "65495,599"},
		{name: "large_max", family: 6, in: large(0), gro: "65475,899"},
		{name: "large_rem", family: 4, in: large(1), gro: "64896,600,600"},
		{name: "large_rem", family: 6, in: large(1), gro: "64576,900,900"},
		{name: "single", in: func(b pt.TCP) []any { return packets(at(b, 0, 100)) }, gro: "100"},
		{name: "capacity", in: capacity, gro: strings.TrimSuffix(strings.Repeat("400,", flows), ",")},
		{name: "pppoe_sid", in: pppoe, gro: "100,100"},
	}
}

// payloads writes the payload lengths of what came out, but for the last packet that went in: the FIN that ends a case.
func payloads(t *testing.T, r *runner) string {
	t.Helper()
	var s []string
	for i := range r.out {
		if r.out[i].Refs[0] == uint64(len(r.in)-1) {
			continue
		}
		f := r.out[i].frame
		n := 0
		if p, err := pt.Read(f); err == nil {
			n = len(p.Payload)
		} else { // not for Read; then it is one of the packets, and how much they carry the case knows
			n = 100
		}
		s = append(s, fmt.Sprint(n))
	}
	return strings.Join(s, ",")
}

// eachSelfCase runs a subtest for every case of the self-test that the family and the profile have. b is the sender's first packet,
// end the one that ends each case, want the expected payloads.
func eachSelfCase(t *testing.T, run func(t *testing.T, c selfCase, p flowtable.Profile, b, end pt.TCP, want string)) {
	for _, c := range selfCases() {
		for _, v6 := range []bool{false, true} {
			if c.family == 4 && v6 || c.family == 6 && !v6 {
				continue
			}
			for _, p := range []flowtable.Profile{flowtable.GRO, flowtable.RSC} {
				t.Run(fmt.Sprintf("%s ipv6=%v %v", c.name, v6, p), func(t *testing.T) {
					want := c.gro
					if p == flowtable.RSC && c.rsc != "" {
						want = c.rsc
					}
					b := pt.TCP{V6: v6, Seq: 100, Ack: 100, TTL: 8}
					run(t, c, p, b, at(b, 1<<20, 0, flags(pt.ACK|pt.FIN)), want)
				})
			}
		}
	}
}

func TestLinuxSelftestCases(t *testing.T) {
	eachSelfCase(t, func(t *testing.T, c selfCase, p flowtable.Profile, b, end pt.TCP, want string) {
		cfg := negotiated(p)
		cfg.Hold = selfHold
		if c.set != nil {
			c.set(&cfg)
		}
		r := newRunner(t, flowtable.Config{}, cfg)
		r.do(c.in(b))
		r.do(packets(end))
		r.close()
		if got := payloads(t, r); got != want {
			t.Errorf("got %s, want %s: %s", got, want, r.result())
		}
	})
}

// Tunnels arrive as the packets inside, which are of no TCP flow of ours.
func TestLinuxSelftestTunnels(t *testing.T) {
	for _, proto := range []byte{4, 41} {
		f := pt.TCP{Len: 100}.Frame()
		f[23] = proto
		scenario(t, negotiated(flowtable.GRO), []any{f, append([]byte(nil), f...)}, "0 not_tcp, 1 not_tcp")
	}
}
