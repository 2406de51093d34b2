package flowtable_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// What a scenario may hold beside pt.TCP, pt.UDP and []byte (a frame).
type (
	wait      time.Duration                 // the clock advances, then Expire is called
	late      time.Duration                 // the clock advances and nobody calls Expire
	endBurst  struct{}                      // EndBurst
	gsoInput  struct{ pt.TCP }              // the caller knows it for a superframe or a partial checksum
	onPort    struct{ port, frame any }     // port is an int, frame as above
	setPort   func(c *flowtable.PortConfig) // SetPort of port 0
	clearPort flowtable.Reason              // ClearPort of port 0
	single    bool                          // Single of port 0
)

// output is one frame as it was delivered, copied.
type output struct {
	flowtable.Superframe
	frame []byte
	at    int64
}

func (o *output) String() string {
	var b strings.Builder
	for i, r := range o.Refs {
		if i > 0 {
			b.WriteByte('+')
		}
		fmt.Fprint(&b, r)
	}
	return b.String() + " " + o.Reason.String()
}

type input struct {
	frame []byte // a copy: the table may change the original
	info  packet.Info
	port  uint32
	at    int64
	gso   bool
}

// runner feeds a table with a virtual clock, keeps what comes out, and finds out what is wrong with it (see judge).
type runner struct {
	tb    testing.TB
	tab   *flowtable.Table
	cfg   []flowtable.PortConfig // by port
	now   int64
	in    []input
	out   []output
	last  map[string]uint64 // by flow: the last Ref that left
	model *oracle           // if set: hears of everything too
	gone  []bool            // by Ref
	ports int
	cut   *source  // if set: packets come in several fragments
	tails []uint64 // by Ref: which of its further fragments are inside, a bit each
	many  int      // further fragments inside of a packet with too many for tails
}

// tailRef is the Ref of a packet's further fragment i, from 1 on.
func tailRef(ref uint64, i int) uint64 { return ref | uint64(i)<<32 }

// split cuts a packet behind its headers, into as many fragments as the source says; some are empty.
func (r *runner) split(p *flowtable.Packet) {
	inside := uint64(0)
	if r.cut != nil {
		whole := p.Data
		at := int(p.Info.Payload)
		if at == 0 {
			at = min(200, len(whole)) // no header ends behind that
		}
		for i := 1; i < 6 && r.cut.one(2); i++ {
			next := at + r.cut.n(len(whole)-at+1)
			if i == 1 {
				p.Data = whole[:next:next]
			} else {
				p.Tail[i-2].Data = whole[at:next:next]
			}
			p.Tail = append(p.Tail, flowtable.Fragment{Data: whole[next:], Ref: tailRef(p.Ref, i)})
			inside |= 1 << i
			at = next
		}
	}
	r.tails = append(r.tails, inside)
}

// join takes the Refs of further fragments out of a frame's, which has to have all of them, each behind its packet's.
func (r *runner) join(o *output) {
	kept := o.Refs[:0]
	for _, ref := range o.Refs {
		p, i := ref&(1<<32-1), ref>>32
		if i == 0 {
			kept = append(kept, ref)
		} else if r.many > 0 {
			r.many--
		} else if len(kept) == 0 || kept[len(kept)-1] != p || r.tails[p]&(1<<i) == 0 {
			r.tb.Errorf("%v: fragment %d of packet %d is not behind it, or was there before", o, i, p)
		} else {
			r.tails[p] &^= 1 << i
		}
	}
	o.Refs = kept
	for _, ref := range o.Refs {
		if r.tails[ref] != 0 {
			r.tb.Errorf("%v: fragments %b of packet %d are missing", o, r.tails[ref], ref)
		}
	}
}

// negotiated is a guest with everything the profile needs.
func negotiated(p flowtable.Profile) flowtable.PortConfig {
	c := flowtable.DefaultPortConfig()
	c.GuestCsum, c.TSO4, c.TSO6 = true, true, true
	c.Profile, c.RSCExt = p, p == flowtable.RSC
	return c
}

func newRunner(tb testing.TB, cfg flowtable.Config, ports ...flowtable.PortConfig) *runner {
	tb.Helper()
	if cfg.Slots == 0 {
		cfg.Slots = 64
	}
	cfg.Ports = len(ports)
	r := &runner{tb: tb, cfg: ports, now: 1e9, last: map[string]uint64{}, ports: len(ports)}
	var err error
	if r.tab, err = flowtable.New(cfg, r); err != nil {
		tb.Fatal(err)
	}
	for i, c := range ports {
		if err := r.tab.SetPort(uint32(i), c, r.now); err != nil {
			tb.Fatal(err)
		}
	}
	return r
}

// Deliver keeps a frame.
func (r *runner) Deliver(sf *flowtable.Superframe) {
	o := output{Superframe: *sf, at: r.now}
	o.Refs = append([]uint64(nil), sf.Refs...)
	o.frame = bytes.Join(sf.Frags, nil)
	o.Frags = nil
	if len(o.frame) != sf.Len {
		r.tb.Errorf("%v: fragments of %d bytes, Len %d", &o, len(o.frame), sf.Len)
	}
	for i, f := range sf.Frags {
		if len(f) == 0 && i > 0 {
			r.tb.Errorf("%v: fragment %d is empty", &o, i)
		}
	}
	r.join(&o)
	r.out = append(r.out, o)
	if l := r.tab.Ledger(sf.Port); l != nil {
		l.Deliver(&sf.Entry)
	}
	r.judge(&r.out[len(r.out)-1])
}

func (r *runner) add(port uint32, frame []byte, gso bool) {
	p := flowtable.Packet{Data: frame, Ref: uint64(len(r.in)), Port: port, GSOInput: gso}
	packet.Parse(frame, &p.Info)
	r.in = append(r.in, input{frame: append([]byte(nil), frame...), info: p.Info, port: port, at: r.now, gso: gso})
	r.gone = append(r.gone, false)
	r.split(&p)
	r.tab.Add(&p, r.now)
	if r.model != nil {
		r.model.add(len(r.in)-1, &r.in[len(r.in)-1], r.now)
	}
}

// addWith adds a frame to port 0 with one field of its Info changed to v.
func (r *runner) addWith(frame []byte, field int, v uint32) {
	p := flowtable.Packet{Data: frame, Ref: uint64(len(r.in))}
	packet.Parse(frame, &p.Info)
	r.in = append(r.in, input{frame: append([]byte(nil), frame...), info: p.Info, at: r.now})
	r.gone = append(r.gone, false)
	r.split(&p)
	i := &p.Info
	switch field {
	case 0:
		i.L3 = v
	case 1:
		i.L4 = v
	case 2:
		i.Payload = v
	case 3:
		i.PayloadLen = v
	case 4:
		i.Family = uint8(v)
	case 5:
		i.TCPFlags = uint8(v)
	case 6:
		i.Keyed = v != 0
	case 7:
		i.Tagged = v != 0
	}
	r.tab.Add(&p, r.now)
}

// advance lets time pass with Expire called at every deadline, as a worker does.
func (r *runner) advance(d time.Duration) {
	end := r.now + int64(d)
	for {
		ns, ok := r.tab.NextDeadline()
		if !ok || ns > end {
			break
		}
		r.now = max(r.now, ns)
		r.tab.Expire(r.now)
		if r.model != nil {
			r.model.expire(r.now)
		}
	}
	r.now = end
}

// clear stops a port.
func (r *runner) clear(port uint32, reason flowtable.Reason) {
	r.tab.ClearPort(port, reason, r.now)
	if r.model != nil {
		r.model.ports[port].closeAll(reason.String())
	}
}

// do runs a scenario. Every packet comes 1 us after what was before it.
func (r *runner) do(steps []any) {
	r.tb.Helper()
	for _, s := range steps {
		r.now += 1000
		r.step(0, s)
	}
}

func (r *runner) step(port uint32, s any) {
	r.tb.Helper()
	switch s := s.(type) {
	case pt.TCP:
		r.add(port, s.Frame(), false)
	case gsoInput:
		r.add(port, s.Frame(), true)
	case pt.UDP:
		r.add(port, s.Frame(), false)
	case []byte:
		r.add(port, s, false)
	case onPort:
		r.step(uint32(s.port.(int)), s.frame)
	case wait:
		r.now += int64(s)
		r.tab.Expire(r.now)
	case late:
		r.now += int64(s)
	case endBurst:
		r.tab.EndBurst(r.now)
	case setPort:
		c := r.cfg[0]
		s(&c)
		if err := r.tab.SetPort(0, c, r.now); err != nil {
			r.tb.Fatal(err)
		}
		r.cfg[0] = c // not before: what was held leaves by the old rules
	case clearPort:
		r.tab.ClearPort(0, flowtable.Reason(s), r.now)
	case single:
		r.tab.Single(0, bool(s), r.now)
	default:
		r.tb.Fatalf("scenario: %T", s)
	}
}

// close ends a run and checks what can only be said at its end: every Ref came back, and the accounts agree.
func (r *runner) close() {
	r.tb.Helper()
	r.now += 1000
	r.tab.Close(flowtable.ReasonStop, r.now)
	for ref, gone := range r.gone {
		if !gone {
			r.tb.Errorf("packet %d never left", ref)
		}
	}
	if r.tab.Held() != 0 || r.tab.Open() != 0 {
		r.tb.Errorf("after Close: %d held in %d slots", r.tab.Held(), r.tab.Open())
	}
	if ns, ok := r.tab.NextDeadline(); ok {
		r.tb.Errorf("after Close: a deadline at %d", ns)
	}
	for port := range r.cfg {
		r.count(uint32(port))
	}
}

// count compares a port's account with what was seen.
func (r *runner) count(port uint32) {
	r.tb.Helper()
	var want flowtable.Ledger
	for i := range r.in {
		if r.in[i].port != port {
			continue
		}
		want.In++
		want.InBytes += uint64(len(r.in[i].frame))
		if !r.gone[i] {
			want.Held++
		}
	}
	for i := range r.out {
		o := &r.out[i]
		if o.Port != port {
			continue
		}
		want.Frames++
		want.FrameBytes += uint64(len(o.frame))
		want.Decided.Frames[o.Reason]++
		if len(o.Refs) == 1 {
			want.Passed[o.Reason]++
			continue
		}
		want.Superframes++
		want.Merged += uint64(len(o.Refs))
		want.Sealed[o.Reason]++
		want.Decided.Superframes++
		want.Decided.Packets += uint64(len(o.Refs))
		want.Decided.Updates += uint64(len(o.Refs) - o.Segments)
		for _, ref := range o.Refs {
			want.Decided.Bytes += uint64(len(ipPacket(&r.in[ref])))
		}
	}
	got := *r.tab.Ledger(port)
	if n := got.Unexplained(); n != 0 {
		r.tb.Errorf("port %d: %d packets are unexplained: %+v", port, n, got)
	}
	want.HoldHist, want.HoldSum = got.HoldHist, got.HoldSum
	if got != want {
		r.tb.Errorf("port %d: account\n got %+v\nwant %+v", port, got, want)
	}
}

// result writes what came out: for each frame the packets in it, by their number in the scenario, and the reason.
func (r *runner) result() string {
	parts := make([]string, len(r.out))
	for i := range r.out {
		parts[i] = r.out[i].String()
	}
	return strings.Join(parts, ", ")
}

// scenario runs steps through one port and compares the result.
func scenario(t *testing.T, c flowtable.PortConfig, steps []any, want string) *runner {
	t.Helper()
	r := newRunner(t, flowtable.Config{}, c)
	r.do(steps)
	r.close()
	if got := r.result(); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	return r
}

// packets turns a list of packets into steps.
func packets(list ...pt.TCP) []any {
	steps := make([]any, len(list))
	for i := range list {
		steps[i] = list[i]
	}
	return steps
}
