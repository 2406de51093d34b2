package flowtable_test

import (
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// A rule is one row of the decision table, named as the row. Packets have 100 bytes of payload unless said otherwise. What
// has to come out is written as in runner.result: the numbers of the packets in a frame, and the frame's reason.
type rule struct {
	name     string
	in       func(b pt.TCP) []any // b is the first packet of a train
	gro, rsc string               // rsc "": as gro
	family   int                  // 4 or 6; 0: both
	untagged bool                 // the rule is about tags itself, or about lengths
	set      func(c *flowtable.PortConfig)
}

type change = func(p *pt.TCP)

// steady is a train of five; the guard of every row that changes one thing in it.
func steady(b pt.TCP) []any { return packets(b.Train(5)...) }

// one changes the third packet of five.
func one(f change) func(pt.TCP) []any {
	return func(b pt.TCP) []any { t := b.Train(5); f(&t[2]); return packets(t...) }
}

// since changes the third packet of five, and those behind it.
func since(f change) func(pt.TCP) []any {
	return func(b pt.TCP) []any {
		t := b.Train(5)
		for i := 2; i < 5; i++ {
			f(&t[i])
		}
		return packets(t...)
	}
}

// always changes every packet of five.
func always(f change) func(pt.TCP) []any {
	return func(b pt.TCP) []any {
		t := b.Train(5)
		for i := range t {
			f(&t[i])
		}
		return packets(t...)
	}
}

// between puts an empty segment, made from the packet that is due, between the second and the third of four.
func between(f change) func(pt.TCP) []any {
	return func(b pt.TCP) []any {
		t := b.Train(4)
		e := t[2]
		e.Len = 0
		f(&e)
		return packets(t[0], t[1], e, t[2], t[3])
	}
}

// What the verdict words come to in these trains.
const merged = "0+1+2+3+4 stop"

// closePass: the head first, then this packet alone, nothing stays open.
func closePass(reason string) string {
	return "0+1 " + reason + ", 2 " + reason + ", 3+4 stop"
}

// closeStart: the head first, then this packet becomes the new head.
func closeStart(reason string) string { return "0+1 " + reason + ", 2+3+4 stop" }

// each: all five alone.
func each(reason string) string {
	return "0 " + reason + ", 1 " + reason + ", 2 " + reason + ", 3 " + reason + ", 4 " + reason
}

// passKeyless: no key can be read, so nothing is closed; the train goes on behind a hole.
func passKeyless(reason string) string { return "2 " + reason + ", 0+1 gap, 3+4 stop" }

func ecn(c *flowtable.PortConfig) { c.ECN = true }

// check runs rows for both profiles and families, untagged and (gro) with one tag.
func check(t *testing.T, rows []rule) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			for _, v6 := range []bool{false, true} {
				if r.family == 4 && v6 || r.family == 6 && !v6 {
					continue
				}
				family := "ipv4"
				if v6 {
					family = "ipv6"
				}
				b := pt.TCP{V6: v6, Seq: 1000, Ack: 5000, ID: 7, Len: 100}
				t.Run("gro "+family, func(t *testing.T) { r.run(t, flowtable.GRO, b, r.gro) })
				rsc := r.rsc
				if rsc == "" {
					rsc = r.gro
				}
				t.Run("rsc "+family, func(t *testing.T) { r.run(t, flowtable.RSC, b, rsc) })
				if b.Tags = []uint16{0x6005}; !r.untagged {
					t.Run("gro tagged "+family, func(t *testing.T) { r.run(t, flowtable.GRO, b, r.gro) })
				}
			}
		})
	}
}

func (r *rule) run(t *testing.T, p flowtable.Profile, b pt.TCP, want string) {
	t.Helper()
	c := negotiated(p)
	if r.set != nil {
		r.set(&c)
	}
	scenario(t, c, r.in(b), want)
}

func TestRulesOfIntegrity(t *testing.T) {
	check(t, []rule{
		{name: "a train merges", in: steady, gro: merged},
		{name: "bad IPv4 header checksum", family: 4, in: one(func(p *pt.TCP) { p.BadIP = true }), gro: closePass("bad_ip_checksum")},
		{name: "bad TCP checksum", in: one(func(p *pt.TCP) { p.BadTCP = true }), gro: closePass("bad_tcp_checksum")},
		{name: "bad TCP checksum on an empty segment", in: between(func(p *pt.TCP) { p.BadTCP = true; p.Win = 9 }), gro: closePass("bad_tcp_checksum")},
		{name: "both checksums bad", family: 4, in: one(func(p *pt.TCP) { p.BadIP, p.BadTCP = true, true }), gro: closePass("bad_ip_checksum")},
		{name: "checksum valid but not canonical", in: one(func(p *pt.TCP) { p.Noncanonical = true }), gro: closePass("noncanonical_checksum"), rsc: merged},
		{name: "partial checksum", in: one(func(p *pt.TCP) { p.Partial = true }), gro: closePass("partial_checksum")},
		{name: "input is already GSO", in: func(b pt.TCP) []any {
			t := b.Train(5)
			return []any{t[0], t[1], gsoInput{t[2]}, t[3], t[4]}
		}, gro: closePass("gso_input")},
	})
}

func TestRulesOfIPStructure(t *testing.T) {
	ext := func(e ...pt.Ext) change { return func(p *pt.TCP) { p.Ext = e } }
	check(t, []rule{
		{name: "IP options", family: 4, in: one(func(p *pt.TCP) { p.IPOpts = []byte{1, 1, 1, 1} }), gro: closePass("ip_options")},
		{name: "IP options on every packet", family: 4, in: always(func(p *pt.TCP) { p.IPOpts = []byte{1, 1, 1, 1} }), gro: each("ip_options")},
		{name: "hop-by-hop", family: 6, in: one(ext(pt.HopByHop())), gro: closePass("ext_header")},
		{name: "routing", family: 6, in: one(ext(pt.Routing())), gro: closePass("ext_header")},
		{name: "destination options", family: 6, in: one(ext(pt.DstOpts(1))), gro: closePass("ext_header")},
		{name: "destination options equal on every packet", family: 6, in: always(ext(pt.DstOpts(1))), gro: each("ext_header")},
		{name: "atomic fragment", family: 6, in: one(ext(pt.FragmentHeader(0, false, 9))), gro: closePass("ext_header")},
		{name: "nine extension headers", family: 6, in: one(ext(slices.Repeat([]pt.Ext{pt.DstOpts(1)}, 9)...)), gro: closePass("ext_header")},
		{name: "headers in front of something unknown", family: 6, in: one(ext(pt.Ext{Type: 51, Body: make([]byte, 15)})), gro: passKeyless("not_tcp")},
		{name: "first fragment, IPv6", family: 6, in: one(ext(pt.FragmentHeader(0, true, 9))), gro: closePass("fragment")},
		{name: "later fragment, IPv6", family: 6, in: one(ext(pt.FragmentHeader(3, true, 9))), gro: closePass("fragment")},
		{name: "first fragment", family: 4, in: one(func(p *pt.TCP) { p.MF = true }), gro: closePass("fragment")},
		{name: "first fragment without DF", family: 4, in: one(func(p *pt.TCP) { p.MF, p.NoDF = true, true }), gro: closePass("fragment")},
		{name: "later fragment", family: 4, in: one(func(p *pt.TCP) { p.FragOffset = 3 }), gro: closePass("fragment")},
		{name: "reserved IP flag bit", family: 4, in: one(func(p *pt.TCP) { p.Reserved = true }), gro: closePass("reserved_flag")},
		{name: "IP length beyond the frame", in: one(func(p *pt.TCP) { p.IPLenDelta = 1 }), gro: closePass("malformed")},
		{name: "IP length 0", in: one(func(p *pt.TCP) { p.ZeroIPLength = true }), gro: closePass("malformed")},
		{name: "bad IHL", family: 4, in: one(func(p *pt.TCP) { p.IHL = 4 }), gro: passKeyless("malformed")},
		{name: "bad version", in: one(func(p *pt.TCP) { p.Version = 5 }), gro: passKeyless("malformed")},
		{name: "data offset below 5", in: one(func(p *pt.TCP) { p.Doff = 4 }), gro: closePass("malformed")},
		{name: "data offset beyond the packet", in: one(func(p *pt.TCP) { p.Len, p.Doff = 3, 7 }), gro: closePass("malformed")},
		{name: "padding up to 60", in: always(func(p *pt.TCP) { p.Pad = true }), gro: merged},
		{name: "padding is not packet data", family: 4, in: func(b pt.TCP) []any {
			b.Len, b.Pad = 1, true
			return packets(b.Train(5)...)
		}, gro: merged},
		{name: "trailer", in: one(func(p *pt.TCP) { p.Trailer = []byte{0} }), gro: closePass("trailer")},
		{name: "long trailer", in: one(func(p *pt.TCP) { p.Trailer = make([]byte, 1400) }), gro: closePass("trailer")},
	})
}

func TestRulesOfIPFields(t *testing.T) {
	tos := func(v uint8) change { return func(p *pt.TCP) { p.TOS = v } }
	id := func(ids ...uint16) func(pt.TCP) []any {
		return func(b pt.TCP) []any {
			t := b.Train(len(ids))
			for i := range t {
				t[i].ID = ids[i]
			}
			return packets(t...)
		}
	}
	noDF := func(in func(pt.TCP) []any) func(pt.TCP) []any {
		return func(b pt.TCP) []any { b.NoDF = true; return in(b) }
	}
	check(t, []rule{
		{name: "DF clear, ID increments", family: 4, in: always(func(p *pt.TCP) { p.NoDF = true }), gro: merged},
		{name: "DF change", family: 4, in: since(func(p *pt.TCP) { p.NoDF = true }), gro: closeStart("df_change")},
		{name: "DF appears", family: 4, in: noDF(since(func(p *pt.TCP) { p.NoDF = false })), gro: closeStart("df_change")},
		{name: "TTL lower", in: since(func(p *pt.TCP) { p.TTL = 9 }), gro: closeStart("ttl_change"), rsc: merged},
		{name: "TTL higher", in: since(func(p *pt.TCP) { p.TTL = 65 }), gro: closeStart("ttl_change"), rsc: merged},
		{name: "TTL 9 on all", in: always(func(p *pt.TCP) { p.TTL = 9 }), gro: merged},
		{name: "DSCP change, highest bit", in: since(tos(0x80)), gro: closeStart("dscp_change")},
		{name: "DSCP change, lowest bit", in: since(tos(0x04)), gro: closeStart("dscp_change")},
		{name: "DSCP with all bits on all", in: always(tos(0xfc)), gro: merged},
		{name: "ECN codepoint change, ECT(1)", in: since(tos(1)), gro: closeStart("ecn_change")},
		{name: "ECN codepoint change, ECT(0)", in: since(tos(2)), gro: closeStart("ecn_change")},
		{name: "CE mark", in: func(b pt.TCP) []any { b.TOS = 2; return one(tos(3))(b) }, gro: "0+1 ecn_change, 2 ecn_change, 3+4 stop"},
		{name: "constant ECT on all", in: always(tos(2)), gro: merged},
		{name: "constant CE on all", in: always(tos(3)), gro: merged},
		{name: "flow label change", family: 6, in: since(func(p *pt.TCP) { p.FlowLabel = 1 }), gro: closeStart("flow_label")},
		{name: "flow label, highest bit", family: 6, in: since(func(p *pt.TCP) { p.FlowLabel = 0x80000 }), gro: closeStart("flow_label")},
		{name: "flow label equal", family: 6, in: always(func(p *pt.TCP) { p.FlowLabel = 0xfffff }), gro: merged},
		{name: "source MAC change", in: since(func(p *pt.TCP) { p.SrcMAC = [6]byte{2, 0, 0, 0, 0, 9} }), gro: closeStart("mac_change")},
		{name: "source MAC change in the first byte", in: since(func(p *pt.TCP) { p.SrcMAC = [6]byte{6, 0, 0, 0, 0, 1} }), gro: closeStart("mac_change")},
		{name: "destination MAC change", in: since(func(p *pt.TCP) { p.DstMAC = [6]byte{2, 0, 0, 0, 9, 2} }), gro: closeStart("mac_change")},
		{name: "IP ID increments", family: 4, in: id(7, 8, 9), gro: "0+1+2 stop"},
		{name: "IP ID wraps", family: 4, in: id(65534, 65535, 0, 1), gro: "0+1+2+3 stop"},
		{name: "IP ID fixed, DF", family: 4, in: id(7, 7, 7), gro: "0+1+2 stop"},
		{name: "IP ID fixed, DF, not wanted", family: 4, in: id(7, 7, 7), set: func(c *flowtable.PortConfig) { c.FixedID = false }, gro: "0 ip_id, 1 ip_id, 2 stop", rsc: "0+1+2 stop"},
		{name: "IP ID fixed, no DF", family: 4, in: noDF(id(7, 7, 7)), gro: "0 ip_id, 1 ip_id, 2 stop", rsc: "0+1+2 stop"},
		{name: "IP ID increments, then stands", family: 4, in: id(7, 8, 8, 9), gro: "0+1 ip_id, 2+3 stop", rsc: "0+1+2+3 stop"},
		{name: "IP ID stands, then increments", family: 4, in: id(7, 7, 8, 9), gro: "0+1 ip_id, 2+3 stop", rsc: "0+1+2+3 stop"},
		{name: "IP ID jumps", family: 4, in: id(7, 8, 10, 11), gro: "0+1 ip_id, 2+3 stop", rsc: "0+1+2+3 stop"},
		{name: "IP ID goes back", family: 4, in: id(7, 8, 7, 8), gro: "0+1 ip_id, 2+3 stop", rsc: "0+1+2+3 stop"},
		{name: "IP ID jumps at once", family: 4, in: id(7, 9, 10), gro: "0 ip_id, 1+2 stop", rsc: "0+1+2 stop"},
	})
}

func TestRulesOfVLAN(t *testing.T) {
	tags := func(v ...uint16) change { return func(p *pt.TCP) { p.Tags = v } }
	check(t, []rule{
		{name: "802.1Q tag, same TCI", untagged: true, in: always(tags(0x7fff)), gro: merged, rsc: each("vlan_tag")},
		{name: "802.1Q tag, not wanted", untagged: true, in: always(tags(5)), set: func(c *flowtable.PortConfig) { c.MergeVLAN = false }, gro: each("vlan_tag")},
		{name: "untagged while tags are not wanted", untagged: true, in: steady, set: func(c *flowtable.PortConfig) { c.MergeVLAN = false }, gro: merged},
		{name: "same VLAN id, other priority", untagged: true, in: func(b pt.TCP) []any { b.Tags = []uint16{5}; return since(tags(0x2005))(b) },
			gro: closeStart("vlan_priority"), rsc: each("vlan_tag")},
		{name: "same VLAN id, other DEI", untagged: true, in: func(b pt.TCP) []any { b.Tags = []uint16{5}; return since(tags(0x1005))(b) },
			gro: closeStart("vlan_priority"), rsc: each("vlan_tag")},
		{name: "another VLAN id is another flow", untagged: true, in: func(b pt.TCP) []any {
			x, y := b, b
			x.Tags, y.Tags = []uint16{5}, []uint16{6}
			s, u := x.Train(2), y.Train(2)
			return packets(s[0], u[0], s[1], u[1])
		}, gro: "0+2 stop, 1+3 stop", rsc: "0 vlan_tag, 1 vlan_tag, 2 vlan_tag, 3 vlan_tag"},
		{name: "a tag of VLAN 0 is not no tag", untagged: true, in: func(b pt.TCP) []any {
			x := b
			x.Tags = []uint16{0}
			s, u := b.Train(2), x.Train(2)
			return packets(s[0], u[0], s[1], u[1])
		}, gro: "0+2 stop, 1+3 stop", rsc: "1 vlan_tag, 3 vlan_tag, 0+2 stop"},
		{name: "QinQ", untagged: true, in: always(tags(5, 6)), gro: each("vlan_stack")},
		{name: "802.1ad", untagged: true, in: always(func(p *pt.TCP) { p.Tags, p.TPID = []uint16{5}, 0x88a8 }), gro: each("vlan_stack")},
	})
}
