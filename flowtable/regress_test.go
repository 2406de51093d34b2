package flowtable_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// last is the last frame that came out, read.
func last(t *testing.T, r *runner) pt.TCP {
	t.Helper()
	p, err := pt.Read(r.out[len(r.out)-1].frame)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Microsoft's worked examples (examples-of-receive-segment-coalescing).
func TestMicrosoftExamples(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := pt.TCP{V6: v6, Len: 1460, Seq: 100, Ack: 1000, Win: 1000}
		t.Run("1: ten contiguous data, same ACK", func(t *testing.T) {
			r := scenario(t, negotiated(flowtable.RSC), packets(b.Train(10)...), "0+1+2+3+4+5+6+7+8+9 stop")
			if r.out[0].Segments != 10 {
				t.Errorf("%d segments", r.out[0].Segments)
			}
		})
		t.Run("2: five data, duplicate ACK with SACK, two data", func(t *testing.T) {
			d := b.Train(7)
			ack := d[5]
			ack.Len, ack.Opts = 0, pt.SACK(1, 2)
			r := scenario(t, negotiated(flowtable.RSC), packets(d[0], d[1], d[2], d[3], d[4], ack, d[5], d[6]), "0+1+2+3+4 dup_ack, 5 dup_ack, 6+7 stop")
			if r.out[0].Segments != 5 || r.out[2].Segments != 2 {
				t.Errorf("%d and %d segments", r.out[0].Segments, r.out[2].Segments)
			}
		})
		t.Run("3: five data, two window updates", func(t *testing.T) {
			d := b.Train(6)
			u, v := d[5], d[5]
			u.Len, u.Win, v.Len, v.Win = 0, 0x4000, 0, 0x8000
			r := scenario(t, negotiated(flowtable.RSC), packets(d[0], d[1], d[2], d[3], d[4], u, v), "0+1+2+3+4+5+6 stop")
			if p := last(t, r); r.out[0].Segments != 5 || r.out[0].CsumStart != 5 || p.Win != 0x8000 {
				t.Errorf("%d segments, window %#x", r.out[0].Segments, p.Win)
			}
		})
		t.Run("4: three data, two data with larger ACK", func(t *testing.T) {
			d := b.Train(5)
			d[3].Ack, d[4].Ack = 2000, 3000
			r := scenario(t, negotiated(flowtable.RSC), packets(d...), "0+1+2+3+4 stop")
			if p := last(t, r); p.Ack != 3000 {
				t.Errorf("ACK %d", p.Ack)
			}
		})
		t.Run("certification: six data, 100 us apart", func(t *testing.T) {
			for _, c := range []struct {
				hold time.Duration
				want string
			}{
				{299 * time.Microsecond, "0+1+2 deadline, 3+4+5 stop"},
				{300 * time.Microsecond, "0+1+2+3 deadline, 4+5 stop"}, // at the deadline: it may go either way
				{50 * time.Microsecond, "0 deadline, 1 deadline, 2 deadline, 3 deadline, 4 deadline, 5 stop"},
			} {
				cfg := negotiated(flowtable.RSC)
				cfg.Hold = c.hold
				var in []any
				for i, d := range b.Train(6) {
					if i > 0 {
						in = append(in, wait(98*time.Microsecond)) // and 2 us by do
					}
					in = append(in, d)
				}
				scenario(t, cfg, in, c.want)
			}
		})
	}
}

// The defects of QEMU's RSC (coalescing rules 1.10), each as a row that QEMU fails. Some are rows of the tables above too.
func TestQEMUDefects(t *testing.T) {
	tos := func(v uint8) change { return func(p *pt.TCP) { p.TOS = v } }
	check(t, []rule{
		{name: "Q1 CE on one IPv6 segment", family: 6, in: one(tos(3)), gro: closePass2("ecn_change")},
		{name: "Q1 DSCP with its low bits", family: 6, in: always(tos(0x0c)), gro: merged},
		{name: "Q2 ECE in mid-train", in: one(flags(pt.ACK | pt.ECE)), gro: closePass2("tcp_flags_change")},
		{name: "Q2 CWR in mid-train", in: one(flags(pt.ACK | pt.CWR)), gro: closePass("cwr")},
		{name: "Q3 CE mark overtakes held data", in: one(tos(3)), gro: closePass2("ecn_change")},
		{name: "Q3 SYN overtakes held data", in: one(flags(pt.SYN | pt.ACK)), gro: closePass("syn")},
		{name: "Q3 a packet without DF overtakes held data", family: 4, in: one(func(p *pt.TCP) { p.NoDF = true }), gro: closePass2("df_change")},
		{name: "Q3 IP options overtake held data", family: 4, in: one(func(p *pt.TCP) { p.IPOpts = make([]byte, 4) }), gro: closePass("ip_options")},
		{name: "Q4 data, then three duplicate ACKs", in: func(b pt.TCP) []any {
			d := b.Train(3)
			a := d[2]
			a.Len = 0
			return packets(d[0], d[1], a, a, a, d[2])
		}, gro: "0+1 dup_ack, 2 dup_ack, 3 pure_ack, 4 pure_ack, 5 stop"},
		{name: "Q5 retransmission with another window", in: func(b pt.TCP) []any {
			r := b.With(func(p *pt.TCP) { p.Win = 9 })
			return packets(b, r)
		}, gro: "0 window_change, 1 stop", rsc: "0 retransmit, 1 stop"},
		{name: "Q6 padded head of 1 byte, then data", family: 4, in: func(b pt.TCP) []any {
			b.Pad, b.Len = true, 1
			n := b.Next()
			n.Len = 100
			return packets(b, n)
		}, gro: "0 larger, 1 stop", rsc: "0+1 stop"},
		{name: "Q7 head with a trailer of 1400 bytes", in: func(b pt.TCP) []any {
			d := b.Train(2)
			d[0].Trailer = bytes.Repeat([]byte{0xa5}, 1400)
			return packets(d...)
		}, gro: "0 trailer, 1 stop"},
		{name: "Q8 DF and MF", family: 4, in: one(func(p *pt.TCP) { p.MF = true }), gro: closePass("fragment")},
		{name: "Q8 DF and an offset", family: 4, in: one(func(p *pt.TCP) { p.FragOffset = 185 }), gro: closePass("fragment")},
		{name: "Q9 bad IP checksum", family: 4, in: one(func(p *pt.TCP) { p.BadIP = true }), gro: closePass("bad_ip_checksum")},
		{name: "Q9 bad TCP checksum", in: one(func(p *pt.TCP) { p.BadTCP = true }), gro: closePass("bad_tcp_checksum")},
		{name: "Q10 partial checksum", in: one(func(p *pt.TCP) { p.Partial = true }), gro: closePass("partial_checksum")},
		{name: "Q11 reset with an open head", in: steps(2, func(p []pt.TCP) []any {
			return []any{p[0], p[1], clearPort(flowtable.ReasonStop)}
		}), gro: "0+1 stop"},
		{name: "Q11 toggle with an open head", in: steps(3, func(p []pt.TCP) []any {
			return []any{p[0], p[1], setPort(func(c *flowtable.PortConfig) { c.TSO4, c.TSO6 = false, false }), p[2]}
		}), gro: "0+1 policy, 2 not_negotiated"},
		{name: "Q13 one data segment and a window update", in: func(b pt.TCP) []any {
			n := b.Next()
			n.Len, n.Win = 0, 9
			return packets(b, n)
		}, gro: "0 window_update, 1 window_update", rsc: "0+1 stop"},
		{name: "Q13 one data segment, updates, a smaller TTL", in: func(b pt.TCP) []any {
			n := b.Next()
			n.Len, n.Win = 0, 9
			m := n
			m.TTL, m.Win = 3, pt.ZeroWin
			return packets(b, n, m)
		}, gro: "0 window_update, 1 window_update, 2 pure_ack", rsc: "0+1+2 stop"},
		{name: "Q13 a padded data segment and a window update", family: 4, in: func(b pt.TCP) []any {
			b.Len, b.Pad = 1, true
			n := b.Next()
			n.Len, n.Win = 0, 9
			return packets(b, n)
		}, gro: "0 window_update, 1 window_update", rsc: "0+1 stop"},
		{name: "Q15 urgent pointer", in: since(func(p *pt.TCP) { p.Urgent = 1 }), gro: closeStart("urgent_pointer"), rsc: merged},
		{name: "Q15 DF", family: 4, in: since(func(p *pt.TCP) { p.NoDF = true }), gro: closeStart("df_change")},
		{name: "Q15 TTL", in: since(func(p *pt.TCP) { p.TTL = 63 }), gro: closeStart("ttl_change"), rsc: merged},
		{name: "Q15 TOS", in: since(tos(0xb8)), gro: closeStart("dscp_change")},
		{name: "Q15 flow label", family: 6, in: since(func(p *pt.TCP) { p.FlowLabel = 7 }), gro: closeStart("flow_label")},
	})
	// Q12 is TestHundredThousandFlows, Q13 also TestHeaderGolden, Q14 is TestLargestSuperframe.
}

// closePass2 is what comes out when one of five packets differs in what must be equal: it starts anew, and the next does too.
func closePass2(reason string) string {
	return "0+1 " + reason + ", 2 " + reason + ", 3+4 stop"
}

// A single data segment with window updates is a plain frame: segments, gso_size and NEEDS_CSUM would be refused by the guest.
func TestSegmentWithWindowUpdatesIsPlain(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := pt.TCP{V6: v6, Len: 101, TTL: 64}
		u := b.Next()
		u.Len, u.Win, u.TTL = 0, 77, 9
		r := scenario(t, negotiated(flowtable.RSC), packets(b, u), "0+1 stop")
		want := b
		want.Win, want.TTL = 77, 9
		o := &r.out[0]
		if !bytes.Equal(o.frame, want.Frame()) {
			t.Errorf("IPv6 %v:\n got %x\nwant %x", v6, o.frame, want.Frame())
		}
		if o.Flags != dataValid || o.GSOType != 0 || o.Segments != 1 {
			t.Errorf("flags %d, type %d, %d segments", o.Flags, o.GSOType, o.Segments)
		}
	}
}

// An IPv4 header checksum of 0xffff is right where 0x0000 is, but no segmentation writes it.
func TestNoncanonicalHeaderChecksum(t *testing.T) {
	b := pt.TCP{Len: 100}
	// The ID brings the sum to 0xffff: with ID 0, the field is what the ID has to be.
	h := b.Frame()
	b.ID = binary.BigEndian.Uint16(h[24:])
	f := b.Frame()
	if f[24] != 0 || f[25] != 0 {
		t.Fatalf("header checksum %x", f[24:26])
	}
	prev := b
	prev.ID, prev.Seq = b.ID-1, b.Seq-100
	scenario(t, negotiated(flowtable.GRO), []any{prev, append([]byte(nil), f...), b.Next()}, "0+1+2 stop")
	f[24], f[25] = 0xff, 0xff
	scenario(t, negotiated(flowtable.GRO), []any{prev, append([]byte(nil), f...), b.Next()}, "0 noncanonical_checksum, 1 noncanonical_checksum, 2 stop")
	scenario(t, negotiated(flowtable.RSC), []any{prev, append([]byte(nil), f...), b.Next()}, "0+1+2 stop")
	scenario(t, negotiated(flowtable.RSC), []any{append([]byte(nil), f...), b.Next()}, "0+1 stop")
}

// Mistakes of other implementations (peers, section 6), as far as they are the table's business.
func TestPeersMistakes(t *testing.T) {
	ident := func(f ...change) func(pt.TCP) []any {
		return func(b pt.TCP) []any {
			d := b.Train(len(f))
			for i := range f {
				f[i](&d[i])
			}
			return packets(d...)
		}
	}
	keep := func(*pt.TCP) {}
	check(t, []rule{
		{name: "order: FIN+PSH leaves with or behind what was held", in: ident(keep, keep, flags(pt.ACK|pt.FIN|pt.PSH)), gro: "0+1+2 psh", rsc: "0+1 fin, 2 fin"},
		{name: "order: the third packet joins the right one", in: func(b pt.TCP) []any {
			x, y := b.Train(3), b.With(func(p *pt.TCP) { p.DstPort = 9 }).Train(3)
			return packets(x[0], y[0], x[1], y[1], y[2], x[2])
		}, gro: "0+2+5 stop, 1+3+4 stop"},
		{name: "order: passed packets and flushed ones do not overwrite each other", in: func(b pt.TCP) []any {
			x := b.Train(2)
			return []any{x[0], pt.UDP{V6: b.V6, Len: 5}, x[1], pt.ARP(), x[1].Next().With(flags(pt.RST | pt.ACK))}
		}, gro: "1 not_tcp, 3 not_ip, 0+2 rst, 4 rst"},
		{name: "order: a control packet seals its own flow only", in: func(b pt.TCP) []any {
			x, y := b.Train(2), b.With(func(p *pt.TCP) { p.SrcPort = 9 }).Train(3)
			return packets(x[0], y[0], y[1].With(flags(pt.RST|pt.ACK)), x[1])
		}, gro: "1 rst, 2 rst, 0+3 stop"},
		{name: "bytes: PSH is set in the header, not in the payload", in: ident(keep, flags(pt.ACK|pt.PSH)), gro: "0+1 psh", rsc: "0+1 stop"},
		{name: "bytes: odd lengths", in: lens(101, 101, 101), gro: "0+1+2 stop"},
		{name: "bounds: TCP header of 16 bytes", in: one(func(p *pt.TCP) { p.Doff = 4 }), gro: closePass("malformed")},
		{name: "bounds: length underflow", family: 4, in: one(func(p *pt.TCP) { p.IPLenDelta = -101 }), gro: closePass("malformed")},
		{name: "kinds: an IPv6 first fragment", family: 6, in: always(func(p *pt.TCP) { p.Ext = []pt.Ext{pt.FragmentHeader(0, true, 1)} }), gro: each("fragment")},
		{name: "fields: ECN is not ORed to a false CE", in: ident(func(p *pt.TCP) { p.TOS = 1 }, func(p *pt.TCP) { p.TOS = 2 }), gro: "0 ecn_change, 1 stop"},
		{name: "fields: window", in: ident(keep, func(p *pt.TCP) { p.Win = 1 }), gro: "0 window_change, 1 stop", rsc: "0+1 stop"},
		{name: "fields: fixed ID without DF", family: 4, in: ident(func(p *pt.TCP) { p.NoDF = true }, func(p *pt.TCP) { p.NoDF, p.ID = true, 7 }), gro: "0 ip_id, 1 stop", rsc: "0+1 stop"},
	})
}

// Odd addresses of the memory a frame lies in.
func TestFramesAtEveryAlignment(t *testing.T) {
	for shift := range 8 {
		r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO))
		b := pt.TCP{Len: 101, Opts: pt.Timestamps(1, 2)}
		for range 3 {
			mem := make([]byte, shift, 512)
			r.add(0, append(mem, b.Frame()...)[shift:], false)
			b = b.Next()
		}
		r.close()
		if got := r.result(); got != "0+1+2 stop" {
			t.Errorf("shift %d: %s", shift, got)
		}
	}
}

// More than one packet a bucket leaves (gVisor 14081), and nothing is held for ever when traffic stops.
func TestEverythingLeavesWhenTrafficStops(t *testing.T) {
	r := newRunner(t, flowtable.Config{Slots: 512}, negotiated(flowtable.GRO))
	for f := range uint16(512) {
		r.do(packets(pt.TCP{SrcPort: 1000 + f, Len: 10}))
	}
	for {
		ns, ok := r.tab.NextDeadline()
		if !ok {
			break
		}
		r.now = max(r.now, ns)
		r.tab.Expire(r.now)
	}
	if len(r.out) != 512 || r.tab.Held() != 0 {
		t.Errorf("%d of 512 left, %d held", len(r.out), r.tab.Held())
	}
	r.close()
}

// Two machines may use the same addresses: their packets never meet.
func TestPortsAreApart(t *testing.T) {
	r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO), negotiated(flowtable.RSC), negotiated(flowtable.GRO))
	d := pt.TCP{Len: 100}.Train(3)
	for i := range d {
		for port := range 3 {
			r.do([]any{onPort{port, d[i]}})
		}
	}
	r.close()
	if got := r.result(); len(r.out) != 3 {
		t.Error(got)
	}
	for i := range r.out {
		want := fmt.Sprintf("%d+%d+%d stop", r.out[i].Port, r.out[i].Port+3, r.out[i].Port+6)
		if got := r.out[i].String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestPacketOfUnknownPortIsPassed(t *testing.T) {
	var got []flowtable.Reason
	out := deliver(func(sf *flowtable.Superframe) { got = append(got, sf.Reason) })
	tab, err := flowtable.New(flowtable.Config{Ports: 1, Slots: 4}, out)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint32{1, 1 << 16, 1<<32 - 1} {
		p := flowtable.Packet{Data: pt.TCP{Len: 100}.Frame(), Port: port}
		packet.Parse(p.Data, &p.Info)
		tab.Add(&p, 1)
		tab.ClearPort(port, flowtable.ReasonStop, 2)
		if tab.Ledger(port) != nil || tab.SetPort(port, negotiated(flowtable.GRO), 3) == nil {
			t.Errorf("port %d exists", port)
		}
	}
	if len(got) != 3 || got[0] != flowtable.ReasonPortDown {
		t.Errorf("left for %v", got)
	}
}

type deliver func(*flowtable.Superframe)

func (d deliver) Deliver(sf *flowtable.Superframe) { d(sf) }
