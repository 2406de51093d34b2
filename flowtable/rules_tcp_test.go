package flowtable_test

import (
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

func flags(f uint16) change { return func(p *pt.TCP) { p.Flags = f } }

func TestRulesOfFlags(t *testing.T) {
	first := func(f uint16) func(pt.TCP) []any {
		return func(b pt.TCP) []any { t := b.Train(3); t[0].Flags = f; return packets(t...) }
	}
	check(t, []rule{
		{name: "SYN", in: one(flags(pt.ACK | pt.SYN)), gro: closePass("syn")},
		{name: "RST", in: one(flags(pt.ACK | pt.RST)), gro: closePass("rst")},
		{name: "URG", in: one(flags(pt.ACK | pt.URG)), gro: closePass("urg")},
		{name: "SYN and RST and URG", in: one(flags(pt.SYN | pt.RST | pt.URG)), gro: closePass("syn")},
		{name: "empty SYN", in: between(flags(pt.SYN)), gro: closePass("syn")},
		{name: "empty RST", in: between(flags(pt.RST)), gro: closePass("rst")},
		{name: "SYN first", in: first(pt.SYN), gro: "0 syn, 1+2 stop"},
		{name: "FIN with data, contiguous", in: one(flags(pt.ACK | pt.FIN)), gro: "0+1+2 fin, 3+4 stop", rsc: closePass("fin")},
		{name: "FIN with data behind a hole", in: func(b pt.TCP) []any {
			t := b.Train(3)
			t[2].Seq++
			t[2].Flags = pt.ACK | pt.FIN
			return packets(t...)
		}, gro: "0+1 gap, 2 gap", rsc: "0+1 fin, 2 fin"},
		{name: "FIN with data, first", in: first(pt.ACK | pt.FIN), gro: "0 fin, 1+2 stop"},
		{name: "FIN without data", in: between(flags(pt.ACK | pt.FIN)), gro: closePass("fin")},
		{name: "FIN without data, nothing held", in: func(b pt.TCP) []any { b.Flags, b.Len = pt.ACK|pt.FIN, 0; return packets(b) }, gro: "0 fin"},
		{name: "PSH", in: one(flags(pt.ACK | pt.PSH)), gro: "0+1+2 psh, 3+4 stop", rsc: merged},
		{name: "PSH first", in: first(pt.ACK | pt.PSH), gro: "0 psh, 1+2 stop", rsc: "0+1+2 stop"},
		{name: "PSH on every packet", in: always(flags(pt.ACK | pt.PSH)), gro: each("psh"), rsc: merged},
		{name: "PSH and FIN", in: one(flags(pt.ACK | pt.PSH | pt.FIN)), gro: "0+1+2 psh, 3+4 stop", rsc: closePass("fin")},
		{name: "PSH with psh_close", in: one(flags(pt.ACK | pt.PSH)), set: func(c *flowtable.PortConfig) { c.PSHClose = true }, gro: "0+1+2 psh, 3+4 stop"},
		{name: "PSH first with psh_close", in: first(pt.ACK | pt.PSH), set: func(c *flowtable.PortConfig) { c.PSHClose = true }, gro: "0 psh, 1+2 stop"},
		{name: "PSH behind a hole", in: func(b pt.TCP) []any {
			t := b.Train(4)
			t[2].Seq, t[3].Seq = t[2].Seq+1, t[3].Seq+1
			t[2].Flags = pt.ACK | pt.PSH
			return packets(t...)
		}, gro: "0+1 gap, 2 gap, 3 stop", rsc: "0+1 gap, 2+3 stop"},
		{name: "ECE, equal in train", in: always(flags(pt.ACK | pt.ECE)), gro: merged},
		{name: "ECE change", in: since(flags(pt.ACK | pt.ECE)), gro: closeStart("tcp_flags_change")},
		{name: "ECE ends", in: func(b pt.TCP) []any { b.Flags = pt.ACK | pt.ECE; return since(flags(pt.ACK))(b) }, gro: closeStart("tcp_flags_change")},
		{name: "CWR on one", in: one(flags(pt.ACK | pt.CWR)), gro: closePass("cwr")},
		{name: "CWR on all", in: always(flags(pt.ACK | pt.CWR)), gro: each("cwr")},
		{name: "CWR on one, GUEST_ECN", in: one(flags(pt.ACK | pt.CWR)), set: ecn, gro: closePass("cwr"), rsc: "0+1 tcp_flags_change, 2 tcp_flags_change, 3+4 stop"},
		{name: "CWR from the third, GUEST_ECN", in: since(flags(pt.ACK | pt.CWR)), set: ecn, gro: "0+1 cwr, 2 cwr, 3 cwr, 4 cwr", rsc: closeStart("tcp_flags_change")},
		{name: "CWR on all, GUEST_ECN", in: always(flags(pt.ACK | pt.CWR)), set: ecn, gro: each("cwr"), rsc: merged},
		{name: "CWR on all with ECE and ECT, GUEST_ECN", in: always(func(p *pt.TCP) { p.Flags, p.TOS = pt.ACK|pt.CWR|pt.ECE, 2 }), set: ecn, gro: each("cwr"), rsc: merged},
		{name: "NS, equal", in: always(flags(pt.ACK | pt.NS)), gro: merged, rsc: each("tcp_flags_change")},
		{name: "NS change", in: since(flags(pt.ACK | pt.NS)), gro: closeStart("tcp_flags_change"), rsc: "0+1 tcp_flags_change, 2 tcp_flags_change, 3 tcp_flags_change, 4 tcp_flags_change"},
		{name: "reserved TCP bit, equal", in: always(flags(pt.ACK | 0x800)), gro: merged, rsc: each("tcp_flags_change")},
		{name: "reserved TCP bit, change", in: since(flags(pt.ACK | pt.Reserved)), gro: closeStart("tcp_flags_change"), rsc: "0+1 tcp_flags_change, 2 tcp_flags_change, 3 tcp_flags_change, 4 tcp_flags_change"},
		{name: "no ACK flag on data", in: one(flags(pt.NoFlags)), gro: closePass("no_ack")},
		{name: "no ACK flag on all", in: always(flags(pt.PSH)), gro: each("no_ack")},
		{name: "urgent pointer, URG clear", in: since(func(p *pt.TCP) { p.Urgent = 5 }), gro: closeStart("urgent_pointer"), rsc: merged},
		{name: "urgent pointer equal", in: always(func(p *pt.TCP) { p.Urgent = 0xffff }), gro: merged},
	})
}

func TestRulesOfEmptySegments(t *testing.T) {
	alone := func(reason string) string { return closePass(reason) }
	check(t, []rule{
		{name: "pure ACK, advancing", in: between(func(p *pt.TCP) { p.Ack++ }), gro: alone("pure_ack")},
		{name: "dup ACK", in: between(func(p *pt.TCP) {}), gro: alone("dup_ack")},
		{name: "SACK on empty segment", in: between(func(p *pt.TCP) { p.Opts = pt.SACK(1, 2) }), gro: alone("dup_ack")},
		{name: "SACK on empty segment with another window", in: between(func(p *pt.TCP) { p.Opts, p.Win = pt.SACK(1, 2), 9 }), gro: alone("window_update")},
		{name: "window update, head has data", in: between(func(p *pt.TCP) { p.Win = 9 }), gro: alone("window_update"), rsc: merged},
		{name: "window update to 0", in: between(func(p *pt.TCP) { p.Win = pt.ZeroWin }), gro: alone("window_update"), rsc: merged},
		{name: "window update with other TTL", in: between(func(p *pt.TCP) { p.Win, p.TTL = 9, 3 }), gro: alone("window_update"), rsc: merged},
		{name: "window update with PSH", in: between(func(p *pt.TCP) { p.Win, p.Flags = 9, pt.ACK|pt.PSH }), gro: alone("window_update")},
		{name: "window update with other ECN", in: between(func(p *pt.TCP) { p.Win, p.TOS = 9, 2 }), gro: alone("window_update")},
		{name: "window update with other flow label", family: 6, in: between(func(p *pt.TCP) { p.Win, p.FlowLabel = 9, 2 }), gro: alone("window_update")},
		{name: "window update with ECE", in: between(func(p *pt.TCP) { p.Win, p.Flags = 9, pt.ACK|pt.ECE }), gro: alone("window_update")},
		{name: "window update without DF", family: 4, in: between(func(p *pt.TCP) { p.Win, p.NoDF = 9, true }), gro: alone("window_update")},
		{name: "window update from another MAC", in: between(func(p *pt.TCP) { p.Win, p.SrcMAC = 9, [6]byte{2, 2, 2, 2, 2, 2} }), gro: alone("window_update")},
		{name: "window update with other timestamps", in: between(func(p *pt.TCP) { p.Win, p.Opts = 9, pt.Timestamps(1, 1) }), gro: alone("window_update")},
		{name: "window update, no head open", in: func(b pt.TCP) []any { b.Len = 0; return packets(b) }, gro: "0 pure_ack"},
		{name: "older ACK", in: between(func(p *pt.TCP) { p.Ack-- }), gro: alone("empty")},
		{name: "older ACK and other window", in: between(func(p *pt.TCP) { p.Ack--; p.Win = 9 }), gro: alone("empty")},
		{name: "sequence ahead", in: between(func(p *pt.TCP) { p.Seq++ }), gro: alone("empty")},
		{name: "keepalive of 0 bytes", in: between(func(p *pt.TCP) { p.Seq-- }), gro: alone("empty")},
		{name: "empty, no ACK flag", in: between(flags(pt.PSH)), gro: alone("empty")},
		{name: "padded dup ACK", in: between(func(p *pt.TCP) { p.Pad = true }), gro: alone("dup_ack")},
		{name: "data after a pure ACK", in: func(b pt.TCP) []any {
			e := b
			e.Len = 0
			return packets(append([]pt.TCP{e}, b.Train(2)...)...)
		}, gro: "0 pure_ack, 1+2 stop"},
		{name: "ACK of a sequence number across the wrap", in: func(b pt.TCP) []any {
			b.Ack = 0xffffffff
			return between(func(p *pt.TCP) { p.Ack = 0 })(b)
		}, gro: alone("pure_ack")},
	})
}

func TestRulesOfSequenceAndACK(t *testing.T) {
	seq := func(d int32) change { return func(p *pt.TCP) { p.Seq += uint32(d) } }
	check(t, []rule{
		{name: "piggy-backed ACK advance on data", in: since(func(p *pt.TCP) { p.Ack += 100 }), gro: closeStart("ack_change"), rsc: merged},
		{name: "ACK advance across the wrap", in: func(b pt.TCP) []any {
			b.Ack = 0xfffffff0
			return since(func(p *pt.TCP) { p.Ack = 16 })(b)
		}, gro: closeStart("ack_change"), rsc: merged},
		{name: "data with older ACK", in: since(func(p *pt.TCP) { p.Ack-- }), gro: closeStart("ack_change")},
		{name: "data with older ACK across the wrap", in: func(b pt.TCP) []any {
			b.Ack = 16
			return since(func(p *pt.TCP) { p.Ack = 0xfffffff0 })(b)
		}, gro: closeStart("ack_change")},
		{name: "data with other window", in: since(func(p *pt.TCP) { p.Win = 9 }), gro: closeStart("window_change"), rsc: merged},
		{name: "data with window 0", in: since(func(p *pt.TCP) { p.Win = pt.ZeroWin }), gro: closeStart("window_change"), rsc: merged},
		{name: "keepalive of 1 byte", in: func(b pt.TCP) []any {
			t := b.Train(2)
			k := t[1].Next()
			k.Len, k.Seq = 1, k.Seq-1
			return packets(t[0], t[1], k)
		}, gro: "0+1 retransmit, 2 stop"},
		{name: "retransmission of the last", in: func(b pt.TCP) []any {
			t := b.Train(2)
			return packets(t[0], t[1], t[1])
		}, gro: "0+1 retransmit, 2 stop"},
		{name: "overlap", in: since(seq(-1)), gro: closeStart("retransmit")},
		{name: "gap", in: since(seq(1)), gro: closeStart("gap")},
		{name: "far ahead", in: since(seq(0x7fffff00)), gro: closeStart("gap")},
		{name: "far behind", in: since(seq(-0x7fffff00)), gro: closeStart("retransmit")},
		{name: "out of order", in: func(b pt.TCP) []any {
			t := b.Train(4)
			return packets(t[0], t[2], t[1], t[3])
		}, gro: "0 gap, 1 retransmit, 2 gap, 3 stop"},
		{name: "sequence wrap across 2^32", in: func(b pt.TCP) []any { b.Seq = 0xffffffff - 149; return steady(b) }, gro: merged},
		{name: "sequence wrap at a segment's end", in: func(b pt.TCP) []any { b.Seq = 0xffffffff - 199; return steady(b) }, gro: merged},
	})
}

func TestRulesOfOptions(t *testing.T) {
	opts := func(o []byte) change { return func(p *pt.TCP) { p.Opts = o } }
	with := func(o []byte, in func(pt.TCP) []any) func(pt.TCP) []any {
		return func(b pt.TCP) []any { b.Opts = o; return in(b) }
	}
	alone := "0+1 options_change, 2 options_change, 3 options_change, 4 options_change"
	long := append([]byte{253, 40}, make([]byte, 38)...) // an experimental option that fills the header
	other := append([]byte(nil), long...)
	other[39] = 1
	check(t, []rule{
		{name: "timestamp option equal", in: always(opts(pt.Timestamps(7, 8))), gro: merged},
		{name: "TSval changed", in: with(pt.Timestamps(7, 8), since(opts(pt.Timestamps(8, 8)))), gro: closeStart("options_change")},
		{name: "TSval back", in: with(pt.Timestamps(7, 8), since(opts(pt.Timestamps(6, 8)))), gro: closeStart("options_change")},
		{name: "TSval across the wrap", in: with(pt.Timestamps(0xffffffff, 8), since(opts(pt.Timestamps(0, 8)))), gro: closeStart("options_change")},
		{name: "TSecr changed", in: with(pt.Timestamps(7, 8), since(opts(pt.Timestamps(7, 9)))), gro: closeStart("options_change")},
		{name: "timestamp option appears", in: since(opts(pt.Timestamps(7, 8))), gro: closeStart("options_change")},
		{name: "timestamp option disappears", in: with(pt.Timestamps(7, 8), since(opts(nil))), gro: closeStart("options_change")},
		{name: "timestamp, padding behind", in: always(opts(pt.TimestampsLast(7, 8))), gro: merged, rsc: each("options_change")},
		{name: "timestamp, padding around", in: always(opts(pt.TimestampsApart(7, 8))), gro: merged, rsc: each("options_change")},
		{name: "timestamp, other layout of the same", in: with(pt.Timestamps(7, 8), since(opts(pt.TimestampsLast(7, 8)))), gro: closeStart("options_change"), rsc: alone},
		{name: "other options, identical bytes", in: always(opts(pt.WindowScale(3))), gro: merged, rsc: each("options_change")},
		{name: "other options differ", in: with(pt.WindowScale(3), since(opts(pt.WindowScale(4)))), gro: closeStart("options_change"), rsc: each("options_change")},
		{name: "SACK blocks on data, identical", in: always(opts(pt.SACK(1, 2))), gro: merged, rsc: each("options_change")},
		{name: "SACK blocks on data, once", in: one(opts(pt.SACK(1, 2))), gro: "0+1 options_change, 2 options_change, 3+4 stop"},
		{name: "40 bytes of options, identical", in: always(opts(long)), gro: merged, rsc: each("options_change")},
		{name: "40 bytes of options, the last differs", in: with(long, since(opts(other))), gro: closeStart("options_change"), rsc: each("options_change")},
		{name: "8 bytes of options", in: always(opts([]byte{253, 8, 1, 2, 3, 4, 5, 6})), gro: merged, rsc: each("options_change")},
		{name: "8 bytes of options, the last differs", in: with([]byte{253, 8, 1, 2, 3, 4, 5, 6}, since(opts([]byte{253, 8, 1, 2, 3, 4, 5, 7}))), gro: closeStart("options_change"), rsc: each("options_change")},
		{name: "zeros in options are not missing options", in: since(opts([]byte{0, 0, 0, 0})), gro: closeStart("options_change"), rsc: alone},
	})
}

// Options of every length are compared to the last byte.
func TestEveryOptionByteIsCompared(t *testing.T) {
	for n := 4; n <= 40; n += 4 {
		same := append([]byte{253, byte(n)}, make([]byte, n-2)...)
		b := pt.TCP{Len: 100, Opts: same}
		scenario(t, negotiated(flowtable.GRO), steady(b), merged)
		for i := range n {
			other := append([]byte(nil), same...)
			other[i] ^= 1
			scenario(t, negotiated(flowtable.GRO), since(func(p *pt.TCP) { p.Opts = other })(b), closeStart("options_change"))
		}
	}
}
