package flowtable_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

func flow(i int) pt.TCP { return pt.TCP{SrcPort: 1000 + uint16(i), Len: 10} }

// The oldest superframe leaves when slots run out, and it is the oldest of all ports.
func TestPressureTakesTheOldest(t *testing.T) {
	for _, hold := range []time.Duration{time.Second, 0} {
		c := negotiated(flowtable.GRO)
		c.Hold = hold
		r := newRunner(t, flowtable.Config{Slots: 3}, c, c)
		r.do([]any{flow(0), onPort{1, flow(1)}, flow(2), flow(0).Next(), flow(3), onPort{1, flow(4)}})
		r.close()
		if len(r.out) < 2 || r.out[0].String() != "0+3 pressure" || r.out[1].String() != "1 pressure" {
			t.Errorf("hold %v: %s", hold, r.result())
		}
	}
}

func TestPressureByChunks(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = time.Second
	d := flow(0).Train(6)
	r := newRunner(t, flowtable.Config{Slots: 8, MaxHeld: 4}, c)
	r.do(packets(flow(1), d[0], d[1], d[2], d[3], d[4], d[5]))
	r.close()
	if got := r.result(); got != "0 pressure, 1+2+3+4 pressure, 5+6 stop" {
		t.Error(got)
	}
}

// With hold 0 packets that wait for their turn are held too, and are bounded too.
func TestPressureByPacketsThatWait(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = 0
	r := newRunner(t, flowtable.Config{Slots: 2}, c)
	r.do([]any{flow(0), pt.ARP(), pt.ARP(), flow(1), pt.ARP(), endBurst{}})
	r.close()
	if got := r.result(); got != "0 pressure, 1 not_ip, 2 not_ip, 3 burst_end, 4 not_ip" {
		t.Error(got)
	}
}

// They are chunks as well.
func TestPressureByChunksThatWait(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = 0
	r := newRunner(t, flowtable.Config{Slots: 8, MaxHeld: 3}, c)
	r.do([]any{flow(0), pt.ARP(), pt.ARP(), pt.ARP(), endBurst{}})
	r.close()
	if got := r.result(); got != "0 pressure, 1 not_ip, 2 not_ip, 3 not_ip" {
		t.Error(got)
	}
}

// QEMU keeps 65 kB for each flow there ever was (Q12). Here the table stays as small as it was made.
func TestHundredThousandFlows(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = time.Second
	left, most := 0, 0
	var tab *flowtable.Table
	tab, err := flowtable.New(flowtable.Config{Slots: 1024, Ports: 1, NoVerify: true}, deliver(func(sf *flowtable.Superframe) { left++ }))
	if err != nil {
		t.Fatal(err)
	}
	if err := tab.SetPort(0, c, 0); err != nil {
		t.Fatal(err)
	}
	const flows = 100_000
	frame := pt.TCP{Len: 1, Src4: [4]byte{10, 0, 0, 0}}.Frame()
	for i := range flows {
		f := append([]byte(nil), frame...)
		f[27], f[28], f[29] = byte(i>>16), byte(i>>8), byte(i) // the source address
		p := flowtable.Packet{Data: f, Ref: uint64(i)}         // without Info: the table parses
		tab.Add(&p, int64(i))
		most = max(most, tab.Open())
	}
	tab.Close(flowtable.ReasonStop, flows)
	if left != flows || most != 1024 {
		t.Errorf("%d left, at most %d slots", left, most)
	}
}

// With as many flows as slots some share a bucket, whatever the seed. They differ in one part of the key each time.
func TestFlowsThatShareABucketAreApart(t *testing.T) {
	const flows = 256
	for name, differ := range map[string]func(p *pt.TCP, i byte){
		"IPv4 source":                      func(p *pt.TCP, i byte) { p.Src4 = [4]byte{10, 0, 0, i} },
		"IPv4 destination":                 func(p *pt.TCP, i byte) { p.Dst4 = [4]byte{10, 0, 0, i} },
		"source port":                      func(p *pt.TCP, i byte) { p.SrcPort = 1000 + uint16(i) },
		"destination port":                 func(p *pt.TCP, i byte) { p.DstPort = 1000 + uint16(i) },
		"VLAN":                             func(p *pt.TCP, i byte) { p.Tags = []uint16{uint16(i)} },
		"IPv6 source, first half":          func(p *pt.TCP, i byte) { p.V6, p.Src6 = true, [16]byte{0: 0x20, 7: i} },
		"IPv6 source, second half":         func(p *pt.TCP, i byte) { p.V6, p.Src6 = true, [16]byte{0: 0x20, 15: i} },
		"IPv6 destination, first half":     func(p *pt.TCP, i byte) { p.V6, p.Dst6 = true, [16]byte{0: 0x20, 7: i} },
		"IPv6 destination, second half":    func(p *pt.TCP, i byte) { p.V6, p.Dst6 = true, [16]byte{0: 0x20, 15: i} },
		"IPv6 destination, its first byte": func(p *pt.TCP, i byte) { p.V6, p.Dst6 = true, [16]byte{0: i, 15: 1} },
	} {
		c := negotiated(flowtable.GRO)
		c.Hold = time.Second
		r := newRunner(t, flowtable.Config{Slots: flows}, c)
		for round := range uint32(2) {
			for i := range flows {
				p := pt.TCP{Len: 10, Seq: 10 * round, ID: uint16(round)}
				differ(&p, byte(i))
				r.add(0, p.Frame(), false)
			}
		}
		r.close()
		for i := range r.out {
			if want := fmt.Sprintf("%d+%d stop", i, i+flows); len(r.out) != flows || r.out[i].String() != want {
				t.Fatalf("%s: %d frames; frame %d: %s, want %s", name, len(r.out), i, &r.out[i], want)
			}
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	out := deliver(func(*flowtable.Superframe) {})
	for _, c := range []flowtable.Config{
		{}, {Ports: -1}, {Ports: 1<<16 + 1}, {Ports: 1, Slots: -1}, {Ports: 1, Slots: flowtable.MaxSlots + 1}, {Ports: 1, MaxHeld: -1}, {Ports: 1, MaxHeld: 1 << 30},
	} {
		if _, err := flowtable.New(c, out); !errors.Is(err, flowtable.ErrConfig) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := flowtable.New(flowtable.Config{Ports: 1}, nil); !errors.Is(err, flowtable.ErrConfig) {
		t.Errorf("no output: %v", err)
	}
	tab, err := flowtable.New(flowtable.Config{Ports: 1}, out)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(c *flowtable.PortConfig){
		"hold":         func(c *flowtable.PortConfig) { c.Hold = -1 },
		"max_bytes":    func(c *flowtable.PortConfig) { c.MaxBytes = 65536 },
		"negative":     func(c *flowtable.PortConfig) { c.MaxBytes = -1 },
		"max_frame":    func(c *flowtable.PortConfig) { c.MaxFrame = -1 },
		"max_segments": func(c *flowtable.PortConfig) { c.MaxSegments = -1 },
		"profile":      func(c *flowtable.PortConfig) { c.Profile = 9 },
	} {
		c := negotiated(flowtable.GRO)
		f(&c)
		if err := tab.SetPort(0, c, 0); !errors.Is(err, flowtable.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := tab.SetPort(1, negotiated(flowtable.GRO), 0); !errors.Is(err, flowtable.ErrPort) {
		t.Errorf("port 1 of 1: %v", err)
	}
}

// A refused configuration changes nothing, not even what is held.
func TestRefusedConfigurationSealsNothing(t *testing.T) {
	r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO))
	d := flow(0).Train(2)
	r.do(packets(d[0]))
	if err := r.tab.SetPort(0, flowtable.PortConfig{Hold: -1}, r.now); err == nil {
		t.Fatal("taken")
	}
	r.do(packets(d[1]))
	r.close()
	if got := r.result(); got != "0+1 stop" {
		t.Error(got)
	}
}

func TestClockRunningBackwards(t *testing.T) {
	r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO))
	d := flow(0).Train(3)
	r.do(packets(d[0]))
	was := r.now
	r.now -= 500e6
	r.tab.Expire(r.now)
	r.add(0, d[1].Frame(), false)
	r.now = was
	r.do(packets(d[2]))
	r.advance(time.Millisecond)
	if got := r.result(); got != "0+1+2 deadline" {
		t.Error(got)
	}
	// The ends of the clock.
	for _, now := range []int64{-1 << 63, 0, 1<<63 - 1} {
		r.tab.Expire(now)
		r.tab.EndBurst(now)
		r.now = max(r.now, now)
	}
	r.now = 1<<63 - 2000
	r.add(0, d[0].Frame(), false)
	r.tab.Close(flowtable.ReasonStop, r.now)
	if r.tab.Held() != 0 {
		t.Error("held")
	}
}

// A worker polls NextDeadline; it is the first packet's, whatever comes behind it and on whatever port.
func TestNextDeadlineIsTheEarliest(t *testing.T) {
	slow, fast, none := negotiated(flowtable.GRO), negotiated(flowtable.GRO), negotiated(flowtable.GRO)
	slow.Hold, fast.Hold, none.Hold = time.Second, time.Millisecond, 0
	r := newRunner(t, flowtable.Config{}, slow, fast, none)
	expect := func(want int64) {
		t.Helper()
		if ns, ok := r.tab.NextDeadline(); ok != (want != 0) || ok && ns != want {
			t.Errorf("deadline %d, %v; want %d", ns, ok, want)
		}
	}
	expect(0)
	r.do([]any{onPort{2, flow(0)}})
	expect(0)
	r.do([]any{flow(0)})
	first := r.now
	expect(first + 1e9)
	r.do([]any{onPort{1, flow(0)}})
	expect(r.now + 1e6)
	r.do([]any{flow(0).Next(), onPort{1, flow(0).Next()}})
	expect(first + 1000 + 1e6)
	r.clear(1, flowtable.ReasonStop)
	expect(first + 1e9)
	r.close()
	expect(0)
}

// Info may be somebody else's, from an XDP program say: what does not fit the frame is not believed.
func TestForeignInfoIsNotBelieved(t *testing.T) {
	d := pt.TCP{Len: 100}.Train(2)
	for _, v6 := range []bool{false, true} {
		for field := range 8 {
			for _, v := range []uint32{0, 1, 13, 33, 53, 54, 100, 255, 256, 1 << 16, 1<<32 - 1} {
				r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO))
				for i := range d {
					d[i].V6 = v6
					r.add(0, d[i].Frame(), false)
				}
				r.addWith(d[1].Next().Frame(), field, v)
				later := d[1]
				later.FragOffset = 3
				if v6 {
					later.FragOffset, later.Ext = 0, []pt.Ext{pt.FragmentHeader(3, true, 1)}
				}
				if field != 2 && field != 3 { // that a fragment has payload changes nothing but what is said of it
					r.addWith(later.Frame()[:60], field, v)
					r.addWith(later.Frame(), field, v)
				}
				r.close()
			}
		}
	}
}

// What a guest's buffers hold bounds its superframes beside the rules, outlives a change of the rules, and can be taken back.
func TestTheGuestsBuffersBoundItsSuperframes(t *testing.T) {
	b := pt.TCP{Len: 100}
	two := len(b.Frame()) + 100 // one superframe of two segments
	for _, c := range []struct {
		limits []int
		want   string
	}{
		{[]int{two}, "0+1 max_bytes, 2 stop"},
		{[]int{two - 1}, "0 max_bytes, 1 max_bytes, 2 stop"},
		{[]int{two, 0}, "0+1+2 stop"},
		{[]int{1 << 20}, "0+1+2 stop"},
	} {
		rules := negotiated(flowtable.GRO)
		rules.Hold = time.Second
		r := newRunner(t, flowtable.Config{}, rules)
		for _, n := range c.limits {
			r.tab.LimitFrame(0, n)
		}
		if err := r.tab.SetPort(0, rules, r.now); err != nil {
			t.Fatal(err)
		}
		r.do(packets(b.Train(3)...))
		r.close()
		if got := r.result(); got != c.want {
			t.Errorf("limits %v: %s, want %s", c.limits, got, c.want)
		}
	}
}
