package flowtable_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// counter is an Output as a worker is one: frames wait in a queue per port and are delivered or dropped later. It can be told
// to make the mistakes that the ledger is there to find.
type counter struct {
	tab   *flowtable.Table
	s     *source
	queue [][]flowtable.Entry // by port

	lose   bool // forget the next frame
	double bool // book the next drop twice
	in     []uint64
	out    []uint64 // packets whose fate is known, by port, counted here
}

func newCounter(tb testing.TB, s *source, ports []flowtable.PortConfig) *counter {
	tb.Helper()
	c := &counter{s: s, queue: make([][]flowtable.Entry, len(ports)), in: make([]uint64, len(ports)), out: make([]uint64, len(ports))}
	var err error
	if c.tab, err = flowtable.New(flowtable.Config{Slots: 16, MaxHeld: 64, Ports: len(ports)}, c); err != nil {
		tb.Fatal(err)
	}
	for i, p := range ports {
		if err := c.tab.SetPort(uint32(i), p, 0); err != nil {
			tb.Fatal(err)
		}
	}
	return c
}

func (c *counter) Deliver(sf *flowtable.Superframe) {
	if c.lose {
		c.lose = false
		return
	}
	c.tab.Ledger(sf.Port).Enqueue(&sf.Entry)
	c.queue[sf.Port] = append(c.queue[sf.Port], sf.Entry)
}

// settle decides the fate of some of what waits.
func (c *counter) settle(most int) {
	for port, q := range c.queue {
		l := c.tab.Ledger(uint32(port))
		for n := min(len(q), c.s.n(most)); n > 0; n-- {
			e := &q[0]
			l.Dequeue(e)
			c.out[port] += uint64(e.Packets)
			if c.s.one(3) || c.double {
				l.Drop(e, flowtable.ReasonGuestNoBuffers)
				if c.double {
					l.Drop(e, flowtable.ReasonGuestNoBuffers)
					c.double = false
				}
			} else {
				l.Deliver(e)
			}
			q = q[1:]
		}
		c.queue[port] = q
	}
}

// burst feeds a few packets of random traffic, some of which do not get as far as the table.
func (c *counter) burst(frames [][]byte, now int64) {
	for _, f := range frames {
		port := uint32(c.s.n(len(c.queue)))
		c.in[port]++
		if c.s.one(16) {
			c.tab.Ledger(port).Refuse(flowtable.ReasonPortDown, len(f))
			c.out[port]++
			continue
		}
		p := flowtable.Packet{Data: f, Port: port}
		packet.Parse(f, &p.Info)
		c.tab.Add(&p, now)
	}
	c.tab.EndBurst(now)
}

// check compares the accounts with each other and with what was counted here.
func (c *counter) check() error {
	for port := range c.queue {
		l := c.tab.Ledger(uint32(port))
		if n := l.Unexplained(); n != 0 {
			return fmt.Errorf("port %d: %d packets unexplained", port, n)
		}
		var queued uint64
		for _, e := range c.queue[port] {
			queued += uint64(e.Packets)
		}
		if l.In+l.Refused != c.in[port] || l.Queued != queued || l.Held != c.in[port]-c.out[port]-queued {
			return fmt.Errorf("port %d: %d in, %d queued, %d settled: %+v", port, c.in[port], queued, c.out[port], l)
		}
	}
	return nil
}

// ledgerRun feeds bursts, and lets the Output make a mistake in front of one of them if there is one to make. It returns the
// first thing that the accounts have to say.
func ledgerRun(tb testing.TB, seed uint64, mistake func(*counter)) (c *counter, err error) {
	tb.Helper()
	s := &source{rnd: rand.New(rand.NewPCG(seed, 11))}
	ports := []flowtable.PortConfig{anyConfig(s), anyConfig(s), anyConfig(s)}
	c = newCounter(tb, s, ports)
	t := newTraffic(s, len(ports), ordinary, true)
	now := int64(0)
	for burst := range 40 {
		var frames [][]byte
		for range s.n(24) {
			p := t.packet(&t.streams[s.n(len(t.streams))])
			frames = append(frames, p.Frame())
		}
		if burst == 20 && mistake != nil {
			mistake(c)
		}
		c.burst(frames, now)
		c.settle(8)
		if err := c.check(); err != nil {
			return c, err
		}
		now += int64(s.n(100_000))
		c.tab.Expire(now)
	}
	c.tab.Close(flowtable.ReasonStop, now)
	for waits := true; waits; {
		c.settle(100)
		waits = false
		for _, q := range c.queue {
			waits = waits || len(q) > 0
		}
	}
	return c, c.check()
}

func TestEveryPacketIsExplainedAfterEveryBurst(t *testing.T) {
	for seed := range uint64(60) {
		c, err := ledgerRun(t, seed, nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		var all, one flowtable.Ledger
		for port := range c.queue {
			l := *c.tab.Ledger(uint32(port))
			if l.Held != 0 || l.Queued != 0 {
				t.Fatalf("seed %d: at the end %d held, %d queued", seed, l.Held, l.Queued)
			}
			all.Add(&l)
			one.In += l.In
			one.Merged += l.Merged
		}
		if all.Unexplained() != 0 || all.In != one.In || all.Merged != one.Merged {
			t.Fatalf("seed %d: the sum of the ports: %+v", seed, all)
		}
	}
}

// The equation can be wrong: each of these mistakes shows.
func TestLedgerFindsMistakesOfItsOutput(t *testing.T) {
	for name, mistake := range map[string]func(*counter){
		"a frame is lost":             func(c *counter) { c.lose = true },
		"a drop is booked twice":      func(c *counter) { c.double = true },
		"a packet is counted for two": func(c *counter) { c.tab.Ledger(0).In++ },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				if _, err := ledgerRun(t, seed, mistake); err == nil {
					t.Errorf("seed %d: nothing was found", seed)
				}
			}
		})
	}
}

// What a frame's fate does to the account, one by one.
func TestLedgerBooksAFrameAtItsFate(t *testing.T) {
	super := flowtable.Entry{Packets: 3, Segments: 3, Len: 4000, Reason: flowtable.ReasonPSH, Merged: true}
	lone := flowtable.Entry{Packets: 1, Segments: 1, Len: 60, Reason: flowtable.ReasonNotTCP}
	var l flowtable.Ledger
	l.In = 8
	l.Refuse(flowtable.ReasonBadLength, 70)
	for _, e := range []*flowtable.Entry{&super, &lone} {
		l.Deliver(e)
		l.Enqueue(e)
	}
	if n := l.Unexplained(); n != 0 {
		t.Errorf("%d unexplained while a superframe and a packet wait", n)
	}
	for _, e := range []*flowtable.Entry{&super, &lone} {
		l.Dequeue(e)
		l.Drop(e, flowtable.ReasonGuestNoBuffers)
	}
	want := flowtable.Ledger{In: 8, Refused: 1, RefusedBytes: 70, Frames: 2, FrameBytes: 4060, Superframes: 1, Merged: 3}
	want.Sealed[flowtable.ReasonPSH], want.Passed[flowtable.ReasonNotTCP] = 1, 1
	want.Dropped[flowtable.ReasonGuestNoBuffers], want.Dropped[flowtable.ReasonBadLength] = 4, 1
	if l != want {
		t.Errorf("got  %+v\nwant %+v", l, want)
	}
	if n := l.Unexplained(); n != 0 {
		t.Errorf("%d unexplained", n)
	}
	l.Enqueue(&lone)
	l.Reset()
	if (l != flowtable.Ledger{In: 1, Queued: 1}) {
		t.Errorf("after Reset: %+v", l)
	}
}

// Two accounts of one VM are added field by field: none is left out.
func TestLedgersAddUp(t *testing.T) {
	var a, b flowtable.Ledger
	n := uint64(0)
	numbers(reflect.ValueOf(&a).Elem(), func(v reflect.Value) { n++; v.SetUint(n) })
	b.Add(&a)
	b.Add(&a)
	at := uint64(0)
	numbers(reflect.ValueOf(&b).Elem(), func(v reflect.Value) {
		if at++; v.Uint() != 2*at {
			t.Errorf("number %d of %d: twice %d is %d", at, n, at, v.Uint())
		}
	})
}

// numbers visits every number in v.
func numbers(v reflect.Value, visit func(reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			numbers(v.Field(i), visit)
		}
	case reflect.Array:
		for i := range v.Len() {
			numbers(v.Index(i), visit)
		}
	default:
		visit(v)
	}
}

// What the table decided is counted when a frame leaves it, whatever becomes of the frame.
func TestDecidedCountsWhatLeftTheTable(t *testing.T) {
	c := flowtable.DefaultPortConfig()
	c.Profile, c.GuestCsum, c.TSO4, c.RSCExt = flowtable.RSC, true, true, true
	n := newCounter(t, &source{rnd: rand.New(rand.NewPCG(1, 2))}, []flowtable.PortConfig{c})
	p := pt.TCP{Len: 1000}
	bytes := 0
	frames := pt.Frames(p.Train(3)...)
	update := p
	update.Seq, update.Len, update.Win = 3000, 0, 900 // joins, without a segment
	frames = append(frames, update.Frame(), pt.UDP{Len: 100}.Frame())
	for i, f := range frames {
		k := flowtable.Packet{Data: f}
		packet.Parse(f, &k.Info)
		n.tab.Add(&k, 0)
		if i < 4 {
			bytes += len(f)
		}
	}
	n.tab.Expire(c.Hold.Nanoseconds())
	want := flowtable.Decided{Superframes: 1, Packets: 4, Updates: 1, Bytes: uint64(bytes)}
	want.Frames[flowtable.ReasonDeadline], want.Frames[flowtable.ReasonNotTCP] = 1, 1
	l := n.tab.Ledger(0)
	if l.Decided != want {
		t.Errorf("got  %+v\nwant %+v", l.Decided, want)
	}
	at := 0
	for i, b := range flowtable.HoldBounds {
		if b == uint64(c.Hold.Nanoseconds()) {
			at = i
		}
	}
	if hist := l.HoldHist; hist[at] != 1 || at == 0 || l.HoldSum != uint64(c.Hold.Nanoseconds()) { // a bound belongs to its bucket
		t.Errorf("waited: %v, in all %d ns", hist, l.HoldSum)
	}
}
