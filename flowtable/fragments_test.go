package flowtable_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// Padding is no part of a packet, however its bytes are spread over fragments: small packets, cut in many ways.
func TestPaddingInFragmentsIsTrimmed(t *testing.T) {
	for _, p := range []flowtable.Profile{flowtable.GRO, flowtable.RSC} {
		for seed := range uint64(200) {
			s := &source{rnd: rand.New(rand.NewPCG(seed, 5))}
			r := newRunner(t, flowtable.Config{}, negotiated(p))
			r.cut = s
			for _, q := range (pt.TCP{Len: 1 + s.n(5), Pad: true}).Train(4) {
				r.add(0, q.Frame(), false)
			}
			r.close()
			if got := r.result(); got != "0+1+2+3 stop" {
				t.Fatalf("%v, seed %d: %s", p, seed, got)
			}
		}
	}
}

// A padded segment in several fragments that absorbed a window update is trimmed too.
func TestPaddingInFragmentsIsTrimmedBehindWindowUpdates(t *testing.T) {
	for seed := range uint64(100) {
		r := newRunner(t, flowtable.Config{}, negotiated(flowtable.RSC))
		r.cut = &source{rnd: rand.New(rand.NewPCG(seed, 6))}
		data := pt.TCP{Len: 3, Pad: true}
		update := data.Next()
		update.Len, update.Win = 0, 77
		r.add(0, data.Frame(), false)
		r.add(0, update.Frame(), false)
		r.close()
		if got := r.result(); got != "0+1 stop" {
			t.Fatalf("seed %d: %s", seed, got)
		}
	}
}

// inPieces adds a frame in pieces of n bytes behind a first fragment of head bytes.
func inPieces(r *runner, frame []byte, head, n int) {
	p := flowtable.Packet{Data: frame[:head:head], Ref: uint64(len(r.in))}
	packet.ParseHead(p.Data, len(frame), &p.Info)
	in := input{frame: slices.Clone(frame), info: p.Info, at: r.now} // a flow is known only where its ports are there
	r.in, r.gone = append(r.in, in), append(r.gone, false)
	for rest, i := frame[head:], 1; len(rest) > 0; i++ {
		k := min(n, len(rest))
		p.Tail = append(p.Tail, flowtable.Fragment{Data: rest[:k:k], Ref: tailRef(p.Ref, i)})
		rest = rest[k:]
	}
	r.tails = append(r.tails, 0)
	if len(p.Tail) < 60 {
		r.tails[p.Ref] = 1<<(len(p.Tail)+1) - 2
	} else {
		r.many = len(p.Tail)
	}
	r.tab.Add(&p, r.now)
}

// A packet in more fragments than a slot holds leaves alone, behind its flow, and all of its memory comes back.
func TestPacketInTooManyFragmentsLeavesAlone(t *testing.T) {
	for _, hold := range []time.Duration{0, time.Millisecond} {
		for _, cfg := range []flowtable.Config{{MaxHeld: 4096}, {MaxHeld: 200}} {
			t.Run(fmt.Sprintf("hold %v, %d held", hold, cfg.MaxHeld), func(t *testing.T) {
				c := negotiated(flowtable.GRO)
				c.Hold = hold
				r := newRunner(t, cfg, c)
				train := pt.TCP{Len: 700}.Train(4)
				r.add(0, train[0].Frame(), false)
				r.add(0, train[1].Frame(), false)
				inPieces(r, train[2].Frame(), 54, 2)
				r.add(0, train[3].Frame(), false)
				r.close()
				if got := r.result(); got != "0+1 pressure, 2 pressure, 3 stop" {
					t.Error(got)
				}
				if r.many != 0 {
					t.Errorf("%d fragments did not come back", r.many)
				}
			})
		}
	}
}

// Headers are read in the first fragment only. A packet whose headers go on behind it is truncated for us, and still closes
// its flow where its ports can be read.
func TestHeadersBehindTheFirstFragmentAreNotRead(t *testing.T) {
	for head := range 66 {
		r := newRunner(t, flowtable.Config{}, negotiated(flowtable.GRO))
		train := pt.TCP{Len: 100, Opts: pt.Timestamps(1, 2)}.Train(4)
		r.add(0, train[0].Frame(), false)
		r.add(0, train[1].Frame(), false)
		inPieces(r, train[2].Frame(), head, 40)
		r.add(0, train[3].Frame(), false)
		want := "2 truncated, 0+1 gap, 3 stop"
		if head >= 38 { // the ports are there
			want = "0+1 truncated, 2 truncated, 3 stop"
		}
		r.close()
		if got := r.result(); got != want {
			t.Errorf("%d bytes: %s, want %s", head, got, want)
		}
	}
}

// More window updates than a slot can count pass, and none is lost.
func TestWindowUpdatesWithoutEnd(t *testing.T) {
	c := negotiated(flowtable.RSC)
	c.Hold = time.Hour
	l := &flowtable.Ledger{}
	table, err := flowtable.New(flowtable.Config{Ports: 1, MaxHeld: 1 << 17}, deliver(func(sf *flowtable.Superframe) { l.Deliver(&sf.Entry) }))
	if err != nil {
		t.Fatal(err)
	}
	if err := table.SetPort(0, c, 0); err != nil {
		t.Fatal(err)
	}
	add := func(p pt.TCP) {
		q := flowtable.Packet{Data: p.Frame()}
		packet.Parse(q.Data, &q.Info)
		table.Add(&q, 1)
	}
	data := pt.TCP{Len: 100}
	update := data.Next()
	update.Len = 0
	add(data)
	const updates = 65540
	for i := range updates {
		update.Win = 1 + i%2
		add(update)
	}
	table.Close(flowtable.ReasonStop, 2)
	if l.Merged != 65536 || l.Passed[flowtable.ReasonWindowUpdate] == 0 || l.Frames != 1+updates-65535 {
		t.Errorf("%d merged, %d frames, %d passed", l.Merged, l.Frames, l.Passed[flowtable.ReasonWindowUpdate])
	}
}

// With hold 0 such a packet waits for nothing: what is older leaves in front of it.
func TestPacketInTooManyFragmentsIsNotQueued(t *testing.T) {
	c := negotiated(flowtable.GRO)
	c.Hold = 0
	r := newRunner(t, flowtable.Config{MaxHeld: 1 << 17}, c)
	r.add(0, pt.TCP{Len: 700}.Frame(), false)
	inPieces(r, pt.TCP{Len: 100, SrcPort: 9, Trailer: make([]byte, 70_000)}.Frame(), 54, 1)
	r.close()
	if got := r.result(); got != "0 pressure, 1 trailer" || r.many != 0 {
		t.Errorf("%s, %d fragments did not come back", got, r.many)
	}
}
