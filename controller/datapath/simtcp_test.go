package datapath

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"time"

	"github.com/rscctl/rscctl/flowtable"
)

// A sender as TCP has them (RFC 5681, 6298, 6675 and 8985 in short): slow start to a bound, repair by selective acknowledgements, a
// probe when nothing is heard, and a timeout. Time goes in steps of simTick, and an acknowledgement takes one of them.
const (
	simTick    = 5 * time.Millisecond
	simRTO     = 200 * time.Millisecond
	simProbe   = 10 * time.Millisecond
	simWindow  = 10 // segments
	simSegment = 1448
)

// simFlow is one connection: the sender, and what the receiver has.
type simFlow struct {
	v6   bool
	port uint16
	isn  uint32

	una, next int          // segments
	sacked    map[int]bool // by the sender's knowledge
	lost      map[int]bool
	resent    map[int]bool // since the last timeout
	window    int
	heard     time.Duration // when something new was acknowledged last
	probed    bool

	noProbes bool
	writes   time.Duration // the application writes a few segments so often; 0: always

	got   map[int]bool // the receiver's
	want  int          // the first that it has not
	acked bool         // an acknowledgement is on its way
}

func newSimFlow(i int, v6 bool) *simFlow {
	return &simFlow{v6: v6, port: uint16(2000 + i), isn: uint32(i) * 0x1234567, window: 10, sacked: map[int]bool{}, lost: map[int]bool{}, resent: map[int]bool{}, got: map[int]bool{}}
}

// hears is what the sender makes of an acknowledgement.
func (f *simFlow) hears(now time.Duration) {
	if !f.acked {
		return
	}
	f.acked = false
	if f.want > f.una {
		f.window = min(f.window+f.want-f.una, simWindow)
		f.una, f.heard, f.probed = f.want, now, false
	}
	f.next = max(f.next, f.una)
	highest := -1
	for s := f.una; s < f.next; s++ {
		if f.got[s] {
			f.sacked[s], highest = true, s
		}
	}
	for s := f.una; s <= highest-3; s++ {
		if !f.sacked[s] && !f.resent[s] {
			f.lost[s], f.resent[s] = true, true
			f.window = max(f.window/2, 2)
		}
	}
}

// sends returns the segments of this tick.
func (f *simFlow) sends(now time.Duration) (out []int) {
	flying := 0
	for s := f.una; s < f.next; s++ {
		if !f.sacked[s] && !f.lost[s] {
			flying++
		}
	}
	switch quiet := now - f.heard; {
	case f.next > f.una && quiet >= simRTO:
		f.heard, f.window, flying = now, 1, 0
		clear(f.resent)
		for s := f.una; s < f.next; s++ {
			f.lost[s] = !f.sacked[s]
		}
	case flying > 0 && quiet >= simProbe && !f.probed && !f.noProbes:
		f.probed = true
		return []int{f.next - 1}
	}
	for s := f.una; s < f.next && flying < f.window; s++ {
		if f.lost[s] && !f.sacked[s] {
			f.lost[s] = false
			out = append(out, s)
			flying++
		}
	}
	for ; flying < f.window && f.next < min(f.una+simWindow, f.written(now)); flying++ {
		if f.next == f.una { // the timer runs from here
			f.heard = now
		}
		out = append(out, f.next)
		f.next++
	}
	return out
}

// written is how many segments the application has written.
func (f *simFlow) written(now time.Duration) int {
	if f.writes == 0 {
		return math.MaxInt
	}
	return 6 * int(now/f.writes)
}

func (f *simFlow) frame(vm uint32, s int) []byte {
	p := to(vm, simSegment)
	p.V6, p.SrcPort, p.Seq, p.ID = f.v6, f.port, f.isn+uint32(s)*simSegment, uint16(s)
	return p.Frame()
}

// takes is the receiver's part for a frame of n segments that begins with s.
func (f *simFlow) takes(s, n int) {
	for i := s; i < s+n; i++ {
		f.got[i] = true
	}
	for f.got[f.want] {
		f.want++
	}
	f.acked = true
}

// simNet is a wire to one VM, with what may go wrong on it and in the guest.
type simNet struct {
	r     *rig
	vm    uint32
	g     *fakeGuest
	flows []*simFlow
	now   time.Duration

	cuts       int                           // of 100 segments that come as the last of their burst, wherever they stand in the flow
	noProbes   bool                          // of senders with their last segment
	wireLoses  float64                       // of the segments
	guestTakes func(super bool, at int) bool // of the at-th frame; nil: each
	stands     func(now time.Duration) bool  // the guest does nothing; nil: never
	waiting    []received                    // what it has not looked at
	frames     int                           // that it looked at
	random     *rand.Rand
}

func newSimNet(r *rig, vm uint32, flows int) *simNet {
	n := &simNet{r: r, vm: vm, g: r.vm(vm), random: rand.New(rand.NewPCG(1, 2))}
	for i := range flows {
		n.flows = append(n.flows, newSimFlow(i, i%2 == 1))
	}
	return n
}

// run lets d pass, or less if until holds.
func (n *simNet) run(d time.Duration, until func() bool) (took time.Duration) {
	for ; took < d && !(until != nil && until()); took += simTick {
		n.tick()
	}
	n.r.check()
	return took
}

func (n *simNet) tick() {
	n.now += simTick
	n.r.advance(simTick)
	for _, f := range n.flows {
		f.noProbes = n.noProbes
		f.hears(n.now)
		for _, s := range f.sends(n.now) {
			if n.random.Float64() < n.wireLoses {
				continue
			}
			if n.r.inject(f.frame(n.vm, s)); len(n.r.nic.rx) == BurstFrames || n.random.IntN(100) < n.cuts {
				n.r.w.step()
			}
		}
	}
	for n.r.w.step() {
	}
	n.waiting = append(n.waiting, n.g.got...)
	n.g.got = nil
	if n.stands != nil && n.stands(n.now) {
		return
	}
	for i := range n.waiting {
		n.guest(&n.waiting[i])
	}
	n.waiting = n.waiting[:0]
}

func (n *simNet) guest(got *received) {
	n.frames++
	super := got.hdr.GSOType != 0
	if n.guestTakes != nil && !n.guestTakes(super, n.frames) {
		return
	}
	in := parse(got.data)
	if int(in.L4)+8 > len(got.data) {
		return
	}
	tcp := got.data[in.L4:]
	f := n.flows[int(binary.BigEndian.Uint16(tcp))-2000]
	segments := 1
	if super {
		segments = (len(got.data) - int(got.hdr.HdrLen) + simSegment - 1) / simSegment
	}
	f.takes(int(binary.BigEndian.Uint32(tcp[4:])-f.isn)/simSegment, segments)
}

// writing has all applications write a few segments every so often.
func (n *simNet) writing(every time.Duration) {
	for _, f := range n.flows {
		f.writes = every
	}
}

// arrived is how many segments the guest has in order, of all flows.
func (n *simNet) arrived() (sum int) {
	for _, f := range n.flows {
		sum += f.want
	}
	return sum
}

func (n *simNet) single() bool { return n.r.w.ports[n.vm].refusal.mode != superframes }

func (n *simNet) refusals() uint64 { return n.r.w.ports[n.vm].cnt.Refusals }

func (n *simNet) passedFor(why flowtable.Reason) uint64 { return n.r.ledger(n.vm).Passed[why] }
