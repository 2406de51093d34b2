package flowtable_test

import (
	"container/heap"
	"encoding/binary"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// holdSim is a table on a counted clock with many senders. Packets are taken one by one, so that what is merged is merged by holds alone.
type holdSim struct {
	tb    testing.TB
	tab   *flowtable.Table
	bound int64
	now   int64

	flows []holdFlow
	due   simEvents
	mem   [][]byte // by Ref
	refs  []uint64

	warm         int64 // what left before is not counted
	segs, frames int
	large        int   // segments in frames of 22 and more
	longest      int64 // a frame was held
	waited       int64
	tap          func(sf *flowtable.Superframe) // hears of each frame, if set
}

// holdFlow is one connection. It sends a train of packets, and the next one every period, or so long behind the delivery of the last.
type holdFlow struct {
	template []byte
	info     packet.Info
	seq      uint32
	id       uint16
	train    int
	spacing  int64 // ns, within a train
	period   int64
	answer   int64                           // ns from the delivery of a train's last packet to the next train; 0: period
	psh      bool                            // on the last of a train
	cut      func() (packets int, gap int64) // trains come at once, but in two pieces: so many packets, and the rest so long behind them; nil: see spacing

	left  int
	began int64 // its train
	rest  int   // of left: the second piece
	gap   int64 // in front of that
	out   int   // packets that have not been delivered
	trips int
	next  uint32 // sequence number that is to be delivered next
}

type simEvent struct {
	at   int64
	flow int
}

type simEvents []simEvent

func (a simEvents) Len() int { return len(a) }
func (a simEvents) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].flow < a[j].flow
}
func (a simEvents) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *simEvents) Push(v any)   { *a = append(*a, v.(simEvent)) }
func (a *simEvents) Pop() any {
	v := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return v
}

const simPayload = 1448

// newHoldSim has a port with a hold; held chunks at most.
func newHoldSim(tb testing.TB, hold time.Duration, adaptive bool, slots, held int) *holdSim {
	tb.Helper()
	s := &holdSim{tb: tb, bound: int64(hold), now: 1e9}
	var err error
	s.tab, err = flowtable.New(flowtable.Config{Slots: slots, MaxHeld: held, Ports: 1, Seed: 1, NoVerify: true}, s)
	if err != nil {
		tb.Fatal(err)
	}
	c := negotiated(flowtable.GRO)
	c.Hold, c.Adaptive = hold, adaptive
	if err := s.tab.SetPort(0, c, s.now); err != nil {
		tb.Fatal(err)
	}
	return s
}

// add adds a sender whose first train comes at once, or later.
func (s *holdSim) add(f holdFlow, payload int, later int64) {
	i := len(s.flows)
	p := pt.TCP{Len: payload, SrcPort: uint16(1000 + i), Opts: pt.Timestamps(7, 8)}
	f.template = p.Frame()
	packet.Parse(f.template, &f.info)
	f.seq, f.left = binary.BigEndian.Uint32(f.template[38:]), f.train
	f.next = f.seq
	s.flows = append(s.flows, f)
	heap.Push(&s.due, simEvent{s.now + later, i})
}

// run lets time pass; what leaves in its second half is counted.
func (s *holdSim) run(d time.Duration) {
	end := s.now + int64(d)
	s.warm = s.now + int64(d)/2
	for {
		next := end
		if len(s.due) > 0 {
			next = min(next, s.due[0].at)
		}
		if s.expire(next) {
			continue // and that may have made a sender go on
		}
		if len(s.due) == 0 || s.due[0].at > end {
			break
		}
		a := heap.Pop(&s.due).(simEvent)
		s.now = a.at
		for s.send(a.flow) {
		}
		s.tab.EndBurst(s.now)
	}
	s.now = end
}

// expire gives out what is due next, if that is early enough.
func (s *holdSim) expire(until int64) bool {
	at, ok := s.tab.NextDeadline()
	if !ok || at > until {
		return false
	}
	s.now = max(s.now, at)
	s.tab.Expire(s.now)
	return true
}

// send gives one packet of a flow to the table. True: the next one comes with it.
func (s *holdSim) send(i int) (next bool) {
	f := &s.flows[i]
	if f.left == f.train {
		f.began, f.gap = s.now, f.spacing
		if f.cut != nil {
			f.rest, f.gap = f.cut()
		}
	}
	var ref uint64
	if n := len(s.refs); n > 0 {
		ref, s.refs = s.refs[n-1], s.refs[:n-1]
	} else {
		ref = uint64(len(s.mem))
		s.mem = append(s.mem, make([]byte, 1514))
	}
	b := s.mem[ref][:len(f.template)]
	copy(b, f.template)
	binary.BigEndian.PutUint32(b[38:], f.seq)
	binary.BigEndian.PutUint16(b[18:], f.id)
	p := flowtable.Packet{Data: b, Ref: ref<<16 | uint64(i), Info: f.info}
	f.seq += f.info.PayloadLen
	f.id++
	f.left--
	f.out++
	switch {
	case f.left > 0 && f.cut != nil && f.left != f.rest:
		next = true
	case f.left > 0:
		heap.Push(&s.due, simEvent{s.now + f.gap, i})
	default:
		f.left = f.train
		if f.psh {
			b[47] |= pt.PSH
			p.Info.TCPFlags |= pt.PSH
		}
		if f.answer == 0 {
			heap.Push(&s.due, simEvent{f.began + f.period, i})
		}
	}
	s.tab.Add(&p, s.now)
	return next
}

// Deliver counts a frame, and lets its sender go on.
func (s *holdSim) Deliver(sf *flowtable.Superframe) {
	i := int(sf.Refs[0] & 0xffff)
	f := &s.flows[i]
	if seq := binary.BigEndian.Uint32(sf.Frags[0][38:]); seq != f.next {
		s.tb.Errorf("flow %d: %d is delivered where %d is due", i, seq, f.next)
	}
	f.next += uint32(sf.Segments) * f.info.PayloadLen
	f.out -= len(sf.Refs)
	if f.answer != 0 && f.out == 0 && f.left == f.train {
		heap.Push(&s.due, simEvent{s.now + f.answer, i})
	}
	for _, r := range sf.Refs {
		s.refs = append(s.refs, r>>16)
	}
	s.tab.Ledger(0).Deliver(&sf.Entry)
	if s.tap != nil {
		s.tap(sf)
	}
	s.longest = max(s.longest, sf.Held)
	if s.now < s.warm {
		return
	}
	if f.left == f.train && f.out == 0 {
		f.trips++
	}
	s.frames++
	s.segs += sf.Segments
	s.waited += sf.Held
	if sf.Segments >= 22 {
		s.large += sf.Segments
	}
}

// report says what was merged, and complains of a frame that was held for too long.
func (s *holdSim) report() {
	s.tb.Helper()
	s.tb.Logf("%.1f segments a frame, %.1f %% in frames of 22 and more, held for %v on average, %v at most, hold now %v", s.perFrame(),
		s.largePercent(), time.Duration(s.waited/int64(s.frames)), time.Duration(s.longest), s.tab.HoldNow(0))
	if s.longest > s.bound {
		s.tb.Errorf("held for %v", time.Duration(s.longest))
	}
	if l := s.tab.Ledger(0); l.Unexplained() != 0 {
		s.tb.Errorf("%d packets are unexplained", l.Unexplained())
	}
}

func (s *holdSim) perFrame() float64     { return float64(s.segs) / float64(s.frames) }
func (s *holdSim) largePercent() float64 { return 100 * float64(s.large) / float64(s.segs) }

// trips is how many trains arrived whole.
func (s *holdSim) trips() (n int) {
	for i := range s.flows {
		n += s.flows[i].trips
	}
	return n
}
