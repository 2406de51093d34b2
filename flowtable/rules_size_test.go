package flowtable_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// lens is one stream in segments of these lengths.
func lens(n ...int) func(pt.TCP) []any {
	return func(b pt.TCP) []any {
		var s []any
		for _, l := range n {
			b.Len = l
			s = append(s, b)
			b = b.Next()
		}
		return s
	}
}

func TestRulesOfSegmentSize(t *testing.T) {
	check(t, []rule{
		{name: "segment smaller than head's", in: lens(100, 100, 99, 100), gro: "0+1+2 short, 3 stop", rsc: "0+1+2+3 stop"},
		{name: "segment of 1 byte", in: lens(100, 1, 100), gro: "0+1 short, 2 stop", rsc: "0+1+2 stop"},
		{name: "segment larger than the first", in: lens(50, 100, 100), gro: "0 larger, 1+2 stop", rsc: "0+1+2 stop"},
		{name: "segment larger by 1", in: lens(100, 100, 101, 101), gro: "0+1 larger, 2+3 stop", rsc: "0+1+2+3 stop"},
		{name: "segments of 1 byte", in: lens(1, 1, 1), gro: "0+1+2 stop"},
		{name: "short with PSH", in: func(b pt.TCP) []any {
			t := b.Train(3)
			t[1].Len, t[1].Flags = 50, pt.ACK|pt.PSH
			t[2].Seq -= 50
			return packets(t...)
		}, gro: "0+1 short, 2 stop", rsc: "0+1+2 stop"},
		{name: "max_segments", in: lens(100, 100, 100, 100, 100), set: func(c *flowtable.PortConfig) { c.MaxSegments = 2 }, gro: "0+1 max_segments, 2+3 max_segments, 4 stop"},
		{name: "max_segments 1", in: lens(100, 100), set: func(c *flowtable.PortConfig) { c.MaxSegments = 1 }, gro: "0 max_segments, 1 max_segments"},
		{name: "max_bytes", family: 4, in: lens(100, 100, 100, 100), set: func(c *flowtable.PortConfig) { c.MaxBytes = 240 }, gro: "0+1 max_bytes, 2+3 stop"},
		{name: "max_bytes, one less", family: 4, in: lens(100, 100, 100, 100), set: func(c *flowtable.PortConfig) { c.MaxBytes = 239 }, gro: "0 max_bytes, 1 max_bytes, 2 max_bytes, 3 stop"},
		{name: "max_bytes, IPv6", family: 6, in: lens(100, 100, 100, 100), set: func(c *flowtable.PortConfig) { c.MaxBytes = 260 }, gro: "0+1 max_bytes, 2+3 stop"},
		{name: "max_frame", family: 4, untagged: true, in: lens(100, 100, 100), set: func(c *flowtable.PortConfig) { c.MaxFrame = 254 }, gro: "0+1 max_bytes, 2 stop"},
		{name: "max_frame, one less", family: 4, untagged: true, in: lens(100, 100, 100), set: func(c *flowtable.PortConfig) { c.MaxFrame = 253 }, gro: "0 max_bytes, 1 max_bytes, 2 stop"},
		{name: "max_frame counts the tag", family: 4, untagged: true, in: func(b pt.TCP) []any { b.Tags = []uint16{5}; return lens(100, 100, 100)(b) },
			set: func(c *flowtable.PortConfig) { c.MaxFrame = 257 }, gro: "0 max_bytes, 1 max_bytes, 2 stop", rsc: "0 vlan_tag, 1 vlan_tag, 2 vlan_tag"},
		{name: "a packet above the limit leaves alone, but is not dropped", family: 4, in: lens(100, 400, 400), set: func(c *flowtable.PortConfig) { c.MaxBytes = 140 }, gro: "0 larger, 1 max_bytes, 2 stop", rsc: "0 max_bytes, 1 max_bytes, 2 stop"},
	})
}

// fill is a train that fills an IP length of limit exactly, or by one byte more, then one packet.
func fill(b pt.TCP, limit, more int) []any {
	room := limit - 40
	if b.V6 {
		room -= 20
	}
	var n []int
	for ; room > 1500; room -= 1448 {
		n = append(n, 1448)
	}
	// What is left is at most 1,500 and goes into two packets, the last of them small.
	return lens(append(n, room-52, 52+more)...)(b)
}

func TestLargestSuperframe(t *testing.T) {
	for _, c := range []struct {
		name  string
		tags  []uint16
		limit int
	}{{"untagged", nil, flowtable.MaxIPLength}, {"tagged", []uint16{5}, flowtable.MaxTaggedIPLength}} {
		for _, v6 := range []bool{false, true} {
			for _, p := range []flowtable.Profile{flowtable.GRO, flowtable.RSC} {
				if p == flowtable.RSC && c.tags != nil {
					continue
				}
				t.Run(fmt.Sprintf("%s ipv6=%v %v", c.name, v6, p), func(t *testing.T) {
					b := pt.TCP{V6: v6, Tags: c.tags, Seq: 1}
					cfg := negotiated(p)
					cfg.Hold = time.Second
					// rsc merges segments of any size, so only there can the limit be met to the byte.
					if p == flowtable.RSC {
						r := newRunner(t, flowtable.Config{}, cfg)
						r.do(fill(b, c.limit, 0))
						r.close()
						if len(r.out) != 1 || r.out[0].Len != c.limit+14 {
							t.Errorf("%d frames, the first of %d bytes", len(r.out), r.out[0].Len)
						}
						r = newRunner(t, flowtable.Config{}, cfg)
						r.do(fill(b, c.limit, 1))
						r.close()
						if len(r.out) != 2 || r.out[0].Reason != flowtable.ReasonMaxBytes {
							t.Errorf("one byte too many: %d frames, reason %v", len(r.out), r.out[0].Reason)
						}
						return
					}
					// gro: equal segments, then what is left.
					room := c.limit - 40
					if v6 {
						room -= 20
					}
					for more := range 2 {
						var n []int
						for range room / 1448 {
							n = append(n, 1448)
						}
						r := newRunner(t, flowtable.Config{}, cfg)
						r.do(lens(append(n, room%1448+more)...)(b))
						r.close()
						if want := 1 + more; len(r.out) != want || more == 0 && r.out[0].Len != c.limit+14+4*len(c.tags) {
							t.Errorf("%d bytes more: %d frames, the first of %d bytes", more, len(r.out), r.out[0].Len)
						}
					}
				})
			}
		}
	}
}

// Many packets of one byte: the counters of segments and references hold. Their bytes are the business of smaller tests.
func TestManySegmentsInOneSuperframe(t *testing.T) {
	const most = flowtable.MaxIPLength - 40
	var frames [][]byte
	for b := (pt.TCP{Len: 1}); len(frames) <= most; b = b.Next() {
		frames = append(frames, b.Frame())
	}
	for _, p := range []flowtable.Profile{flowtable.GRO, flowtable.RSC} {
		var got []flowtable.Superframe
		out := deliver(func(sf *flowtable.Superframe) {
			n := 0
			for _, f := range sf.Frags {
				n += len(f)
			}
			if n != sf.Len || len(sf.Refs) != sf.Segments || sf.Refs[len(sf.Refs)-1]-sf.Refs[0] != uint64(sf.Segments-1) {
				t.Errorf("%v: %d bytes in %d, %d packets with %d segments", p, n, sf.Len, len(sf.Refs), sf.Segments)
			}
			got = append(got, *sf)
		})
		table, err := flowtable.New(flowtable.Config{MaxHeld: 1 << 17, Ports: 1}, out)
		if err != nil {
			t.Fatal(err)
		}
		c := negotiated(p)
		c.Hold = time.Second
		if err := table.SetPort(0, c, 0); err != nil {
			t.Fatal(err)
		}
		for i, f := range frames {
			table.Add(&flowtable.Packet{Data: append([]byte(nil), f...), Ref: uint64(i)}, 0)
		}
		table.Close(flowtable.ReasonStop, 0)
		if len(got) != 2 || got[0].Segments != most || got[0].Reason != flowtable.ReasonMaxBytes || got[0].Len != flowtable.MaxIPLength+14 {
			t.Errorf("%v: %d frames, %+v", p, len(got), got[0])
		}
	}
}
