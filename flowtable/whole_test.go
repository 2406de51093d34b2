package flowtable_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// wholeOutput books what it gets, and keeps it.
type wholeOutput struct {
	tab  *flowtable.Table
	left []flowtable.Superframe
}

func (o *wholeOutput) Deliver(sf *flowtable.Superframe) {
	o.left = append(o.left, *sf)
	o.tab.Ledger(sf.Port).Deliver(&sf.Entry)
}

// A superframe of UDP that came as one leaves behind what is held of its flow, where features, policy and the bounds of UDP would have let the
// table make it, in both profiles, and never with TCP's words in its header.
func TestASuperframeOfUDPThatCameAsOne(t *testing.T) {
	for name, c := range map[string]struct {
		rules     func(*flowtable.PortConfig)
		datagrams int
		takes     bool
	}{
		"as it is":              {nil, 5, true},
		"64 datagrams":          {nil, 64, true},
		"to a tunnel":           {nil, 5, false},
		"65 datagrams":          {nil, 65, false},
		"one datagram":          {nil, 1, false},
		"--udp off":             {func(c *flowtable.PortConfig) { c.UDP = false }, 5, false},
		"no USO":                {func(c *flowtable.PortConfig) { c.USO4, c.USO6 = false, false }, 5, false},
		"rsc":                   {func(c *flowtable.PortConfig) { c.Profile, c.RSCExt = flowtable.RSC, true }, 5, true},
		"more than max-bytes":   {func(c *flowtable.PortConfig) { c.MaxBytes = 500 }, 5, false},
		"coalescing is off":     {func(c *flowtable.PortConfig) { c.Coalesce = false }, 5, false},
		"max-segments is lower": {func(c *flowtable.PortConfig) { c.MaxSegments = 4 }, 5, false},
	} {
		for _, v6 := range []bool{false, true} {
			cfg := datagrams()
			cfg.Hold = time.Second
			if c.rules != nil {
				c.rules(&cfg)
			}
			o := wholeTable(t, cfg)
			u := pt.UDP{V6: v6, Len: 100}
			one := flowtable.Packet{Data: u.Frame(), Ref: 1}
			packet.Parse(one.Data, &one.Info)
			o.tab.Add(&one, 0)
			if u.Len, u.Partial = 100*c.datagrams, true; name == "to a tunnel" {
				u.DstPort = 4789
			}
			b := u.Frame()
			in := &packet.Info{}
			packet.ParseHead(b, len(b), in)
			sf := &flowtable.Superframe{Frags: [][]byte{b}, GSOType: 5, GSOSize: 100, HdrLen: uint16(len(b) - u.Len)}
			sf.Packets, sf.Len = c.datagrams, len(b)
			if o.tab.TakesWhole(sf, in) != c.takes {
				t.Errorf("%s, IPv6 %v: taken is %v", name, v6, !c.takes)
			}
			if !c.takes {
				continue
			}
			o.tab.PassWhole(sf, in, 0)
			if n := len(o.left); n != 2 || o.left[0].Reason != flowtable.ReasonGSOInput || o.left[0].Merged {
				t.Fatalf("%s: %d frames", name, n)
			}
			if h := o.left[1]; h.Flags != 1 || h.CsumOffset != 6 || uint32(h.CsumStart) != in.L4 || !h.Merged || h.TCP {
				t.Errorf("%s: %+v", name, h)
			}
			if l := o.tab.Ledger(0); l.Unexplained() != 0 || l.Merged != uint64(c.datagrams) {
				t.Errorf("%s: %+v", name, *l)
			}
		}
	}
}

func wholeTable(t *testing.T, c flowtable.PortConfig) *wholeOutput {
	t.Helper()
	o := &wholeOutput{}
	var err error
	if o.tab, err = flowtable.New(flowtable.Config{Slots: 16, Ports: 2}, o); err != nil {
		t.Fatal(err)
	}
	if err := o.tab.SetPort(0, c, 0); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *wholeOutput) add(p pt.TCP) {
	b := p.Frame()
	k := flowtable.Packet{Data: b, Ref: 1}
	packet.Parse(b, &k.Info)
	o.tab.Add(&k, 0)
}

// came is a superframe of five packets that came as one.
func came(p pt.TCP) (*flowtable.Superframe, *packet.Info) {
	p.Len, p.Partial = 5000, true
	b := p.Frame()
	in := &packet.Info{}
	packet.ParseHead(b, len(b), in)
	sf := &flowtable.Superframe{Frags: [][]byte{b}, GSOType: tcpv4, GSOSize: 1000, HdrLen: uint16(in.Payload)}
	if p.V6 {
		sf.GSOType = tcpv6
	}
	sf.Packets, sf.Len = 5, len(b)
	return sf, in
}

// A superframe that came as one leaves at once, behind what is held of its flow and in front of what is held of others; with hold 0, where
// what left alone may wait for its turn, behind all of its port.
func TestASuperframeThatCameAsOneKeepsItsPlace(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		mine, other := pt.TCP{V6: v6, Len: 1000}, pt.TCP{V6: v6, Len: 1000, SrcPort: 77}
		ack := mine.With(func(p *pt.TCP) { p.Len, p.Seq = 0, 1000 })
		next := mine.With(func(p *pt.TCP) { p.Seq = 1000 })
		for _, c := range []struct {
			hold time.Duration
			want []flowtable.Reason
		}{
			{time.Millisecond, []flowtable.Reason{flowtable.ReasonGSOInput}}, // what was its flow's has left
			{0, []flowtable.Reason{flowtable.ReasonBurstEnd, flowtable.ReasonDupACK, flowtable.ReasonDupACK, flowtable.ReasonGSOInput}},
		} {
			cfg := negotiated(flowtable.GRO)
			cfg.Hold = c.hold
			o := wholeTable(t, cfg)
			o.add(other)
			o.add(mine)
			o.add(ack) // closes the flow, and leaves alone behind it
			sf, in := came(next)
			if !o.tab.TakesWhole(sf, in) {
				t.Fatal("not taken")
			}
			o.left = nil
			o.tab.PassWhole(sf, in, 0)
			var got []flowtable.Reason
			for i := range o.left {
				got = append(got, o.left[i].Reason)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("hold %v: %v, want %v", c.hold, got, c.want)
			}
			// Held data of the flow itself leaves in front of the next one.
			o.add(next.With(func(p *pt.TCP) { p.Seq = 6000 }))
			o.left = nil
			sf, in = came(mine.With(func(p *pt.TCP) { p.Seq = 7000 }))
			o.tab.PassWhole(sf, in, 0)
			if n := len(o.left); n != 2 || o.left[0].Merged || o.left[0].Reason != flowtable.ReasonGSOInput || !o.left[1].Merged {
				t.Errorf("hold %v: %d frames: %v", c.hold, n, o.left)
			}
			l := o.tab.Ledger(0)
			if l.Unexplained() != 0 || l.Merged != 10 || l.In != 14 {
				t.Errorf("%+v", *l)
			}
			head := uint64(sf.HdrLen)
			if d := l.Decided; d.Superframes != 2 || d.Packets != 10 || d.Bytes != 2*(5000+5*head) {
				t.Errorf("%+v", d)
			}
			h := o.left[1]
			if h.Flags != 1 || h.CsumOffset != 16 || uint32(h.CsumStart) != in.L4 {
				t.Errorf("%+v", h)
			}
		}
	}
}

// Who may not have a superframe of the table's may have none that came as one; nor one that does not say what it is.
func TestASuperframeThatIsNotTakenWhole(t *testing.T) {
	fine := func(*flowtable.PortConfig) {}
	for name, c := range map[string]struct {
		rules func(*flowtable.PortConfig)
		frame func(*flowtable.Superframe, *packet.Info)
		takes bool
	}{
		"as it is":            {fine, func(*flowtable.Superframe, *packet.Info) {}, true},
		"guest's limit":       {fine, nil, false}, // below
		"one packet":          {fine, func(sf *flowtable.Superframe, _ *packet.Info) { sf.Packets = 1 }, false},
		"no such port":        {fine, func(sf *flowtable.Superframe, _ *packet.Info) { sf.Port = 2 }, false},
		"port without rules":  {fine, func(sf *flowtable.Superframe, _ *packet.Info) { sf.Port = 1 }, false},
		"offsets of nothing":  {fine, func(_ *flowtable.Superframe, in *packet.Info) { in.L4 += 4 }, false},
		"verdict":             {fine, func(_ *flowtable.Superframe, in *packet.Info) { in.Verdict = packet.Trailer }, false},
		"max_segments":        {func(c *flowtable.PortConfig) { c.MaxSegments = 4 }, func(*flowtable.Superframe, *packet.Info) {}, false},
		"as many as allowed":  {func(c *flowtable.PortConfig) { c.MaxSegments = 5 }, func(*flowtable.Superframe, *packet.Info) {}, true},
		"max_bytes":           {func(c *flowtable.PortConfig) { c.MaxBytes = 5039 }, func(*flowtable.Superframe, *packet.Info) {}, false},
		"as many bytes":       {func(c *flowtable.PortConfig) { c.MaxBytes = 5040 }, func(*flowtable.Superframe, *packet.Info) {}, true},
		"policy off":          {func(c *flowtable.PortConfig) { c.Coalesce = false }, func(*flowtable.Superframe, *packet.Info) {}, false},
		"rsc without RSC_EXT": {func(c *flowtable.PortConfig) { c.Profile, c.RSCExt = flowtable.RSC, false }, func(*flowtable.Superframe, *packet.Info) {}, true},
	} {
		cfg := negotiated(flowtable.GRO)
		c.rules(&cfg)
		o := wholeTable(t, cfg)
		sf, in := came(pt.TCP{})
		if c.frame == nil {
			o.tab.LimitFrame(0, 5053)
		} else {
			c.frame(sf, in)
		}
		if o.tab.TakesWhole(sf, in) != c.takes {
			t.Errorf("%s: taken is %v", name, !c.takes)
		}
	}
	o := wholeTable(t, negotiated(flowtable.GRO))
	o.tab.Single(0, true, 0)
	if sf, in := came(pt.TCP{}); o.tab.TakesWhole(sf, in) {
		t.Error("a guest that refuses superframes gets one")
	}
}

// A sum that a VM of this machine left to its device stays left where the packet leaves alone at once, and is completed for all else: what is
// merged, what waits, a guest that sums up nothing.
func TestASumThatIsLeftStaysLeft(t *testing.T) {
	data := func(p *pt.TCP) { p.Len = 1000 }
	for name, c := range map[string]struct {
		rules func(*flowtable.PortConfig)
		edit  func(*pt.TCP)
		left  bool
		why   flowtable.Reason
	}{
		"an acknowledgement":      {nil, func(*pt.TCP) {}, true, flowtable.ReasonPureACK},
		"data with PSH":           {nil, func(p *pt.TCP) { p.Len, p.Flags = 1000, pt.ACK|pt.PSH }, true, flowtable.ReasonPSH},
		"SYN":                     {nil, func(p *pt.TCP) { p.Flags = pt.SYN }, true, flowtable.ReasonSYN},
		"data that may be merged": {nil, data, false, flowtable.ReasonStop},
		"coalescing is off":       {func(c *flowtable.PortConfig) { c.Coalesce = false }, data, true, flowtable.ReasonPolicyOff},
		"no GUEST_CSUM":           {func(c *flowtable.PortConfig) { c.GuestCsum = false }, data, false, flowtable.ReasonNotNegotiated},
	} {
		for _, v6 := range []bool{false, true} {
			cfg := negotiated(flowtable.GRO)
			cfg.Hold = time.Millisecond
			if c.rules != nil {
				c.rules(&cfg)
			}
			o := wholeTable(t, cfg)
			p := pt.TCP{V6: v6, Partial: true}
			c.edit(&p)
			o.addLeft(p)
			o.tab.Close(flowtable.ReasonStop, 0)
			want := p
			want.Partial = c.left
			if len(o.left) != 1 || !bytes.Equal(o.left[0].Frags[0], want.Frame()) || o.left[0].Reason != c.why {
				t.Fatalf("%s: %d frames, reason %v", name, len(o.left), o.left[0].Reason)
			}
			l4 := uint16(34)
			if v6 {
				l4 = 54
			}
			sf, says := o.left[0], flowtable.Superframe{}
			if c.left {
				says.Flags, says.CsumStart, says.CsumOffset = 1, l4, 16
			} else if cfg.GuestCsum {
				says.Flags = 2 // DATA_VALID
			}
			if sf.Flags != says.Flags || sf.CsumStart != says.CsumStart || sf.CsumOffset != says.CsumOffset {
				t.Errorf("%s: flags %d, start %d, offset %d", name, sf.Flags, sf.CsumStart, sf.CsumOffset)
			}
		}
	}
	// Held packets are merged as if they had come with their sums; what waits behind them with hold 0 has its own.
	cfg := negotiated(flowtable.GRO)
	cfg.Hold = 0
	o := wholeTable(t, cfg)
	train := pt.TCP{Len: 1000, Partial: true}.Train(3)
	for _, p := range train {
		o.addLeft(p)
	}
	ack := pt.TCP{SrcPort: 5, Partial: true}
	o.addLeft(ack)
	o.tab.EndBurst(0)
	ack.Partial = false
	if len(o.left) != 2 || o.left[0].Packets != 3 || o.left[0].Flags != 1 || !bytes.Equal(o.left[1].Frags[0], ack.Frame()) || o.left[1].CsumStart != 0 {
		t.Errorf("%d frames: %+v", len(o.left), o.left)
	}
}

func (o *wholeOutput) addLeft(p pt.TCP) {
	b := p.Frame()
	k := flowtable.Packet{Data: b, Ref: 1, CsumOffset: 16}
	packet.Parse(b, &k.Info)
	k.CsumStart = uint16(k.Info.L4)
	o.tab.Add(&k, 0)
}
