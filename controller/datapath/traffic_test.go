package datapath

import (
	"testing"

	"github.com/rscctl/rscctl/flowtable"
)

// runWorld lets bursts of random traffic pass, and returns the first thing that the accounts have to say. mistake is made in
// front of one of them.
func runWorld(tb testing.TB, seed uint64, bursts int, mistake func(w *world)) (*world, error) {
	tb.Helper()
	w := newWorld(tb, seed)
	for i := range bursts {
		if i == bursts/2 && mistake != nil {
			mistake(w)
		}
		if err := w.burst(); err != nil {
			return w, err
		}
	}
	w.nic.busy, w.nic.down = false, false
	w.w.finish()
	err := w.compare()
	for _, v := range w.vms {
		if l := w.ledger(v.cfg.Index); err == nil && (l.Held != 0 || l.Queued != 0) {
			tb.Errorf("seed %d: VM %d: %d held and %d queued at the end", seed, v.cfg.Index, l.Held, l.Queued)
		}
	}
	if n := w.nic.with(inWorker); err == nil && n != 0 {
		tb.Errorf("seed %d: %d chunks out at the end", seed, n)
	}
	for f, n := range w.onWire {
		if n != 0 && err == nil {
			tb.Errorf("seed %d: never left: %x", seed, head([]byte(f)))
			break
		}
	}
	return w, err
}

// After every burst each VM's ledger says what the test counted itself: what came, what the guest got, what was dropped, what
// waits where. Every packet arrives at most once, as it was sent, and in the order of its flow; every chunk is in one hand.
func TestEveryPacketIsExplainedAfterEveryBurstOfRandomTraffic(t *testing.T) {
	var all flowtable.Ledger
	var sum PortCounters
	seeds := uint64(20)
	if raceEnabled { // ten times as slow
		seeds = 8
	}
	for seed := range seeds {
		w, err := runWorld(t, seed, 60, nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, p := range w.w.list {
			all.Add(p.ledger)
			sum.Add(&p.cnt)
		}
	}
	// The traffic was of all kinds.
	for what, n := range map[string]uint64{
		"superframes": all.Superframes, "refused": all.Refused, "cut again": sum.Recut, "between VMs": sum.Local,
		"guests without room": all.Dropped[flowtable.ReasonGuestNoBuffers], "guests that stopped": all.Dropped[flowtable.ReasonPortDown],
		"bad frames": all.Dropped[flowtable.ReasonBadLength], "foreign sources": sum.TxDropped[flowtable.ReasonSourceMAC],
		"pieces for a guest with small buffers": all.Passed[flowtable.ReasonMaxBytes], "to the wire": sum.TxWire,
		"pieces for a guest without the feature": all.Passed[flowtable.ReasonNotNegotiated],
	} {
		if n == 0 {
			t.Errorf("the traffic had no %s", what)
		}
	}
	t.Logf("%d packets in, %d superframes of %d, %d cut again, %d frames sent", all.In, all.Superframes, all.Merged, sum.Recut, sum.TxFrames)
}

// brokenOutput is a worker's Output that makes one mistake.
type brokenOutput struct {
	w     *world
	lose  bool // the next frame is lost
	twice bool // the next frame is dropped, and that is booked twice
}

func (b *brokenOutput) Deliver(sf *flowtable.Superframe) {
	switch {
	case b.twice:
		l := b.w.ledger(sf.Port)
		l.Drop(&sf.Entry, flowtable.ReasonGuestNoBuffers)
		l.Drop(&sf.Entry, flowtable.ReasonGuestNoBuffers)
	case !b.lose:
		b.w.w.Deliver(sf)
		return
	}
	b.lose, b.twice = false, false
	b.w.nic.FreeAll(sf.Refs)
}

// The check above can fail: each of these mistakes shows.
func TestTheCheckFindsMistakes(t *testing.T) {
	through := func(set func(b *brokenOutput)) func(w *world) {
		return func(w *world) {
			b := &brokenOutput{w: w}
			set(b)
			w.through(b)
		}
	}
	for name, mistake := range map[string]func(w *world){
		"a packet is lost between the table and the queue": through(func(b *brokenOutput) { b.lose = true }),
		"a drop is booked twice":                           through(func(b *brokenOutput) { b.twice = true }),
		"a frame is lost from the queue": func(w *world) {
			w.sooner(func(p *port) bool {
				if p.out.n == 0 {
					return false
				}
				w.nic.FreeAll(p.out.pop().Refs)
				return true
			})
		},
		"a drop is booked twice behind the queue": func(w *world) {
			w.sooner(func(p *port) bool {
				for i, n := range p.ledger.Dropped {
					if n > 0 {
						p.ledger.Drop(&flowtable.Entry{Packets: 1}, flowtable.Reason(i))
						return true
					}
				}
				return false
			})
		},
		"a guest gets less than was counted": func(w *world) {
			w.sooner(func(p *port) bool {
				g := fakeOf(p.guest)
				if g == nil || len(g.got) == 0 {
					return false
				}
				g.got = g.got[1:]
				return true
			})
		},
		"a packet is counted for two": func(w *world) { w.ledger(0).In++ },
		"a chunk is lost":             func(w *world) { w.nic.AllocTx() },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				if _, err := runWorld(t, seed, 30, mistake); err == nil {
					t.Errorf("seed %d: nothing was found", seed)
				}
			}
		})
	}
}

// through puts another Output between the table and the worker. It takes effect with the next burst.
func (w *world) through(out flowtable.Output) {
	w.tb.Helper()
	t, err := flowtable.New(flowtable.Config{Slots: 24, MaxHeld: w.w.cfg.Chunks / 4, Ports: MaxPorts}, out)
	if err != nil {
		w.tb.Fatal(err)
	}
	// All that the old table holds leaves, and the accounts move.
	w.w.table.Close(flowtable.ReasonStop, w.now.Load())
	w.w.flush()
	for _, v := range w.vms {
		p := w.w.ports[v.cfg.Index]
		if err := t.SetPort(v.cfg.Index, w.someRules(), w.now.Load()); err != nil {
			w.tb.Fatal(err)
		}
		*t.Ledger(v.cfg.Index) = *p.ledger
		p.ledger = t.Ledger(v.cfg.Index)
		p.out.ledger = p.ledger
	}
	w.w.table = t
}

// sooner makes a mistake as soon as a port gives the chance.
func (w *world) sooner(mistake func(p *port) bool) { w.mistake = mistake }
