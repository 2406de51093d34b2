package flowtable_test

import (
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

func hold(d time.Duration) func(c *flowtable.PortConfig) {
	return func(c *flowtable.PortConfig) { c.Hold = d }
}

// steps gives a train to a function that puts other things between its packets.
func steps(n int, f func(t []pt.TCP) []any) func(pt.TCP) []any {
	return func(b pt.TCP) []any { return f(b.Train(n)) }
}

func TestRulesOfTime(t *testing.T) {
	us := func(n int) wait { return wait(time.Duration(n) * time.Microsecond) }
	check(t, []rule{
		{name: "hold over", in: steps(3, func(t []pt.TCP) []any { return []any{t[0], t[1], us(49), t[2]} }), gro: "0+1 deadline, 2 stop"},
		{name: "hold not quite over", in: steps(3, func(t []pt.TCP) []any { return []any{t[0], t[1], us(46), t[2]} }), gro: "0+1+2 stop"},
		{name: "the deadline is never extended", in: steps(5, func(t []pt.TCP) []any {
			return []any{t[0], us(19), t[1], us(19), t[2], us(19), t[3], us(19), t[4]}
		}), gro: "0+1+2 deadline, 3+4 stop"},
		{name: "nobody called Expire in time", in: steps(3, func(t []pt.TCP) []any {
			return []any{t[0], t[1], late(time.Second), t[2]}
		}), gro: "0+1 deadline, 2 stop"},
		{name: "a single segment waits no longer", in: steps(1, func(t []pt.TCP) []any { return []any{t[0], us(50)} }), gro: "0 deadline"},
		{name: "EndBurst does not end a hold", in: steps(3, func(t []pt.TCP) []any { return []any{t[0], endBurst{}, t[1], t[2]} }), gro: "0+1+2 stop"},
		{name: "EndBurst lets go what is overdue", in: steps(3, func(t []pt.TCP) []any {
			return []any{t[0], t[1], late(time.Second), endBurst{}, t[2]}
		}), gro: "0+1 deadline, 2 stop"},
		{name: "hold 0 ends with the burst", set: hold(0), in: steps(4, func(t []pt.TCP) []any {
			return []any{t[0], t[1], endBurst{}, t[2], t[3], endBurst{}}
		}), gro: "0+1 burst_end, 2+3 burst_end"},
		{name: "hold 0 does not end by time", set: hold(0), in: steps(2, func(t []pt.TCP) []any {
			return []any{t[0], wait(time.Hour), t[1], endBurst{}}
		}), gro: "0+1 burst_end"},
		{name: "hold 0 leaves in order of first packets", set: hold(0), in: func(b pt.TCP) []any {
			x, y := b.Train(3), b.With(func(p *pt.TCP) { p.SrcPort = 9 }).Train(3)
			y[1].Flags = pt.ACK | pt.PSH
			return []any{x[0], y[0], x[1], y[1], x[2], y[2], endBurst{}}
		}, gro: "0+2+4 burst_end, 1+3 psh, 5 burst_end", rsc: "0+2+4 burst_end, 1+3+5 burst_end"},
		{name: "hold 0: a packet passed alone waits for older ones", set: hold(0), in: func(b pt.TCP) []any {
			x := b.Train(2)
			return []any{x[0], pt.ARP(), pt.UDP{Len: 9}, x[1], endBurst{}}
		}, gro: "0+3 burst_end, 1 not_ip, 2 not_tcp"},
		{name: "hold 0: what is passed with nothing held leaves at once", set: hold(0), in: func(b pt.TCP) []any {
			x := b.Train(2)
			return []any{pt.ARP(), x[0], x[1], endBurst{}, pt.ARP()}
		}, gro: "0 not_ip, 1+2 burst_end, 3 not_ip"},
		{name: "hold > 0: a packet of no flow does not wait", in: func(b pt.TCP) []any {
			x := b.Train(2)
			return []any{x[0], pt.ARP(), pt.UDP{V6: b.V6, Len: 9}, x[1]}
		}, gro: "1 not_ip, 2 not_tcp, 0+3 stop"},
	})
}

func TestRulesOfPolicy(t *testing.T) {
	set := func(f func(c *flowtable.PortConfig)) func(*flowtable.PortConfig) { return f }
	every := func(r string) string { return each(r) }
	check(t, []rule{
		{name: "policy off", in: steady, set: set(func(c *flowtable.PortConfig) { c.Coalesce = false }), gro: every("policy_off")},
		{name: "IPv4 off", family: 4, in: steady, set: set(func(c *flowtable.PortConfig) { c.IPv4 = false }), gro: every("family_off")},
		{name: "IPv4 off, IPv6 goes on", family: 6, in: steady, set: set(func(c *flowtable.PortConfig) { c.IPv4 = false }), gro: merged},
		{name: "IPv6 off", family: 6, in: steady, set: set(func(c *flowtable.PortConfig) { c.IPv6 = false }), gro: every("family_off")},
		{name: "no GUEST_CSUM", in: steady, set: set(func(c *flowtable.PortConfig) { c.GuestCsum = false }), gro: every("not_negotiated")},
		{name: "no GUEST_TSO4", family: 4, in: steady, set: set(func(c *flowtable.PortConfig) { c.TSO4 = false }), gro: every("not_negotiated")},
		{name: "no GUEST_TSO6", family: 6, in: steady, set: set(func(c *flowtable.PortConfig) { c.TSO6 = false }), gro: every("not_negotiated")},
		{name: "no GUEST_TSO4, IPv6 goes on", family: 6, in: steady, set: set(func(c *flowtable.PortConfig) { c.TSO4 = false }), gro: merged},
		{name: "source port excluded", in: steady, set: set(func(c *flowtable.PortConfig) { c.ExcludePorts = []uint16{22, 1500} }), gro: every("port_excluded")},
		{name: "destination port excluded", in: steady, set: set(func(c *flowtable.PortConfig) { c.ExcludePorts = []uint16{8000, 22} }), gro: every("port_excluded")},
		{name: "another port excluded", in: steady, set: set(func(c *flowtable.PortConfig) { c.ExcludePorts = []uint16{22, 1501, 7999} }), gro: merged},
		{name: "structure goes before policy", in: always(func(p *pt.TCP) { p.Trailer = make([]byte, 60) }), set: set(func(c *flowtable.PortConfig) { c.Coalesce = false }), gro: every("trailer")},
		{name: "feature off in mid-train", in: steps(4, func(t []pt.TCP) []any {
			return []any{t[0], t[1], setPort(func(c *flowtable.PortConfig) { c.Coalesce = false }), t[2], t[3]}
		}), gro: "0+1 policy, 2 policy_off, 3 policy_off"},
		{name: "the guest refuses superframes, and takes them again", in: steps(6, func(t []pt.TCP) []any {
			return []any{t[0], t[1], single(true), t[2], t[3], single(false), t[4], t[5]}
		}), gro: "0+1 guest_refuses, 2 guest_refuses, 3 guest_refuses, 4+5 stop"},
		{name: "a policy outlives a refusal, and the other way round", in: steps(4, func(t []pt.TCP) []any {
			off := func(c *flowtable.PortConfig) { c.Coalesce = false }
			on := func(c *flowtable.PortConfig) { c.Coalesce = true }
			return []any{single(true), setPort(off), t[0], setPort(on), t[1], setPort(off), single(false), t[2]}
		}), gro: "0 policy_off, 1 guest_refuses, 2 policy_off"},
		{name: "ring stop", in: steps(4, func(t []pt.TCP) []any {
			return []any{t[0], t[1], clearPort(flowtable.ReasonStop), t[2], t[3]}
		}), gro: "0+1 stop, 2+3 stop"},
		{name: "rsc without RSC_EXT is gro", in: one(flags(pt.ACK | pt.PSH)), set: set(func(c *flowtable.PortConfig) { c.RSCExt = false }), gro: "0+1+2 psh, 3+4 stop"},
	})
}

// gro is allowed to a guest that negotiated RSC_EXT, and V4 binds it too (7.3).
func TestGROForGuestWithRSCExt(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.RSCExt = true
	r := scenario(t, c, packets(pt.TCP{Len: 100}.Train(3)...), "0+1+2 stop")
	if o := r.out[0]; o.Flags != needsCsum|rscInfo || o.CsumStart != 3 || o.CsumOffset != 0 {
		t.Errorf("flags %d, csum_start %d, csum_offset %d", o.Flags, o.CsumStart, o.CsumOffset)
	}
}

func TestOtherProtocolsPass(t *testing.T) {
	check(t, []rule{{name: "tunnel, IPsec, UDP, ARP, ICMP, PPPoE", untagged: true, in: func(b pt.TCP) []any {
		proto := func(v6 bool, p byte) []byte {
			f := pt.TCP{V6: v6, Len: 100}.Frame()
			if f[23] = p; v6 {
				f[23], f[20] = 0, p
			}
			return f
		}
		t := b.Train(2)
		return []any{t[0], proto(b.V6, 4), proto(b.V6, 41), proto(b.V6, 47), proto(b.V6, 50), proto(b.V6, 51), pt.UDP{V6: b.V6, Len: 100},
			pt.ARP(), pt.ICMP(b.V6, 20), pt.Ethernet(0x8864, make([]byte, 60)...), []byte{}, []byte{1, 2, 3}, t[1]}
	}, gro: "1 not_tcp, 2 not_tcp, 3 not_tcp, 4 not_tcp, 5 not_tcp, 6 not_tcp, 7 not_ip, 8 not_tcp, 9 not_ip, 10 truncated, 11 truncated, 0+12 stop"}})
}
