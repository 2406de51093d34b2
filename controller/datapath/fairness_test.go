//go:build !race

package datapath

import (
	"fmt"
	"testing"
	"time"
)

// Each test here is a line of the promise "no neighbour is harmed": a VM that does something hostile, or only a lot, and an
// honest one beside it, which gets at least 90 % of what it gets alone, or of its fair share where all want more than there is.

const paced = 150_000 // packets a second that an honest receiver gets

// atLeast compares a count with a share of another.
func atLeast(t *testing.T, what string, got, of, percent int) {
	t.Helper()
	t.Logf("%s: %d of %d, %.1f %%", what, got, of, 100*float64(got)/float64(max(1, of)))
	if got*100 < of*percent || got == 0 {
		t.Errorf("%s: %d of %d, want %d %%", what, got, of, percent)
	}
}

// total is what all VMs sent.
func (s *sim) total() (n int) {
	for _, v := range s.vms {
		n += v.sent
	}
	return n
}

// wires are the ways in which the TX ring may empty.
var wires = map[string]func(n *simNIC){
	"the worker is the bottleneck": func(n *simNIC) {},
	"the wire is the bottleneck":   func(n *simNIC) { n.perFrame = 4000 },
}

// Whoever was first, whatever the frames and however many virtqueues: all that want more than there is get the same.
func TestVMsThatSendGetEqualParts(t *testing.T) {
	for name, all := range map[string][]func(*simVM){
		"three honest bulk senders":          {bulk(1), bulk(1), bulk(1)},
		"small frames beside large ones":     {bulk(1), bulk(1), small(1), small(1)},
		"one queue beside eight":             {bulk(8), bulk(1), small(8), small(1)},
		"hostile ones first":                 {cruel(8), cruel(8), cruel(8), cruel(8), bulk(1), bulk(1), small(1)},
		"hostile ones, one queue":            {cruel(1), cruel(1), cruel(1), cruel(1), bulk(1), small(1)},
		"many hostile ones":                  append(many(28, cruel(8)), bulk(1), small(1)),
		"chains of 1,024 descriptors beside": {longChains(8), longChains(8), bulk(1), small(1)},
	} {
		for how, wire := range wires {
			t.Run(name+", "+how, func(t *testing.T) {
				s := newSim(t, wire)
				for _, k := range all {
					s.vm(k)
				}
				s.measure(400 * time.Millisecond)
				for i, v := range s.vms {
					if v.sources[0].pieces == 1024 { // it pays for its descriptors, so it sends less
						continue
					}
					atLeast(t, fmt.Sprintf("VM %d", i), v.sent, s.total()/len(s.vms), 90)
				}
			})
		}
	}
}

func many(n int, kind func(*simVM)) (all []func(*simVM)) {
	for range n {
		all = append(all, kind)
	}
	return all
}

// A VM that is alone has everything: it loses next to nothing to the bounds that protect others.
func TestALoneSenderHasTheWholeQueue(t *testing.T) {
	const span = 200 * time.Millisecond
	for name, kind := range map[string]func(*simVM){"bulk": bulk(1), "eight queues": bulk(8), "small frames": small(1), "large cuts": cruel(1)} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t)
			v := s.vm(kind)
			src := v.sources[0]
			s.measure(span)
			perFrame := src.pieces*costPiece + len(src.data)/costBytes
			packets := 1
			if src.hdr.GSOType != 0 {
				packets = (len(src.data) - 66 + int(src.hdr.GSOSize) - 1) / int(src.hdr.GSOSize)
			}
			most := int(span) / (perFrame/packets + costTx) // if the worker did nothing else
			atLeast(t, "packets", v.sent, most, 97)
		})
	}
	// A full wire: it never runs dry.
	s := newSim(t, wires["the wire is the bottleneck"])
	v := s.vm(bulk(1))
	s.measure(span)
	atLeast(t, "packets of what the wire takes", v.sent, int(span)/4000, 99)
	// Beside VMs that have nothing to send.
	s = newSim(t)
	v = s.vm(bulk(1))
	for range 200 {
		s.vm(small(8)).stopSending()
	}
	s.measure(span)
	atLeast(t, "packets beside 1,600 idle queues", v.sent, int(span)/(costTx+len(v.sources[0].data)/costBytes/45), 60)
}

func (v *simVM) stopSending() {
	for _, src := range v.sources {
		src.stop = true
	}
}

// Sources of 256 VMs with 8 queues each, all of them full: each of them comes to its turn.
func TestNoSourceStarves(t *testing.T) {
	s := newSim(t)
	for i := range MaxPorts {
		s.vm([]func(int) func(*simVM){bulk, cruel, small, longChains}[i%4](8))
	}
	s.run(2 * time.Second)
	for i, v := range s.vms {
		for j, src := range v.sources {
			if src.taken == 0 {
				t.Fatalf("queue %d of VM %d never sent", j, i)
			}
		}
	}
}

// Senders are not starved by what comes in, even when more comes than the worker can take.
func TestAFloodThatComesInLeavesSendersTheirPart(t *testing.T) {
	s := newSim(t)
	flooded, v := s.vm(), s.vm(bulk(1))
	flooded.receives(2_000_000, flooded.datagram())
	s.measure(200 * time.Millisecond)
	// A turn is at most 512 frames in, and at least 256 out.
	in, out := 512*costRx, 256*costTx
	atLeast(t, "packets sent", v.sent, int(200*time.Millisecond)*out/(in+out)/costTx, 90)
	atLeast(t, "packets received", flooded.guest.got, int(200*time.Millisecond)*in/(in+out+200*costTx)/costRx, 90)
}

// beside runs a paced receiver alone, and then beside others.
func beside(t *testing.T, what string, rate int, kind func(*simVM), others func(s *sim)) *sim {
	t.Helper()
	const span = 200 * time.Millisecond
	results := [2]int{}
	var s *sim
	for i := range results {
		s = newSim(t)
		if i == 1 {
			others(s)
			s.run(50 * time.Millisecond) // they have taken what they can
		}
		v := s.vm(kind)
		if v.guest.ring {
			v.receives(rate, v.trainOf(20)...)
		} else {
			v.receives(rate, v.datagram())
		}
		s.measure(span)
		results[i] = v.guest.got
	}
	atLeast(t, what, results[1], results[0], 90)
	return s
}

func plain(*simVM) {}

// Bulk senders beside a receiver cost it nothing, because what comes in is first and what goes out is bounded.
func TestAReceiverBesideBulkSendersLosesNothing(t *testing.T) {
	for _, n := range []int{1, 3, 16, 64, 255} {
		s := beside(t, fmt.Sprintf("beside %d bulk senders", n), paced, plain, func(s *sim) {
			for range n {
				s.vm(bulk(8))
			}
		})
		if lost := s.vms[n].lost; lost != 0 {
			t.Errorf("%d bulk senders: %d frames lost in the RX ring", n, lost)
		}
		beside(t, fmt.Sprintf("beside %d hostile senders", n), paced, plain, func(s *sim) {
			for range n {
				s.vm(cruel(8))
			}
		})
	}
}

// Guests that never post a buffer hold no more than a quarter of the UMEM, and are looked at once a turn.
func TestGuestsWithoutBuffersCostTheOthersNothing(t *testing.T) {
	for _, n := range []int{1, 4, 64, 255} {
		s := beside(t, fmt.Sprintf("beside %d guests without buffers", n), paced, plain, func(s *sim) {
			for range n {
				v := s.vm(stuck)
				v.receives(max(500, 100_000/n), v.trainOf(45)...)
			}
		})
		s.waitsWithinBound()
	}
}

// waitsWithinBound checks what waits for all guests together.
func (s *sim) waitsWithinBound() {
	s.tb.Helper()
	waiting := 0
	for _, p := range s.w.list {
		waiting += p.out.chunks
	}
	if waiting > simChunks/4 {
		s.tb.Errorf("%d chunks wait for %d guests", waiting, len(s.w.list))
	}
}

// A ring that the kernel does not empty keeps what it got; the next VMs still have their part.
func TestRingsThatGiveNothingBackLeaveTheNextItsPart(t *testing.T) {
	for _, n := range []int{0, 4, 16, 64, 200} {
		s := beside(t, fmt.Sprintf("beside %d stuck rings", n), paced, onTap, func(s *sim) {
			for range n {
				v := s.vm(stuckTap)
				v.receives(max(1000, 100_000/n), v.trainOf(45)...)
				s.run(2 * time.Millisecond) // one after the other, so that each may borrow what the last one left
			}
		})
		held := 0
		for _, v := range s.vms[:n] {
			held += len(v.guest.held)
		}
		t.Logf("%d stuck rings hold %d chunks, %.2f of the UMEM", n, held, float64(held)/simChunks)
		if held > ringsHold(n) {
			t.Errorf("%d rings hold %d chunks, want at most %d", n, held, ringsHold(n))
		}
	}
}

// ringsHold is the bound that docs/architecture.md gives.
func ringsHold(n int) int {
	sum := simChunks / 8
	for i := range n {
		sum += simChunks / 16 / max(ringHolders, i+1)
	}
	return sum
}

// Chains of 1,024 descriptors, sent and posted, are paid for by those who make them.
func TestLongChainsArePaidForByTheirVM(t *testing.T) {
	for _, n := range []int{1, 4, 64} {
		beside(t, fmt.Sprintf("beside %d VMs with chains of 1,024 to send", n), paced, plain, func(s *sim) {
			for range n {
				s.vm(longChains(8))
			}
		})
		beside(t, fmt.Sprintf("beside %d VMs with chains of 1,024 to receive into and to send", n), paced, plain, func(s *sim) {
			for range n {
				v := s.vm(longChains(8), chopped)
				v.receives(50_000/n, v.trainOf(45)...)
			}
		})
		// Guests in debt, for which more comes than they can pay for: it waits, and holds chunks.
		s := beside(t, fmt.Sprintf("beside %d VMs in debt", n), paced, plain, func(s *sim) {
			for range n {
				v := s.vm()
				v.guest.pieces = 2600 // the most that a frame may have
				v.receives(200_000/n, v.datagram())
			}
		})
		s.waitsWithinBound()
	}
}

// What waits for a VM that is away for a moment is bounded as for one without buffers, and it loses no more than that.
func TestPausedVMsCostTheOthersNothing(t *testing.T) {
	for _, n := range []int{1, 4, 64} {
		s := beside(t, fmt.Sprintf("beside %d paused VMs", n), paced, plain, func(s *sim) {
			for range n {
				v := s.vm()
				v.receives(100_000/n, v.trainOf(45)...)
				s.w.pausePort(v.index)
			}
		})
		s.waitsWithinBound()
		if s.spins > 0 {
			t.Errorf("%d turns did nothing and asked for another", s.spins)
		}
	}
}

// Without shares in XDP a flood at one VM fills the RX ring, and the frames of all are lost in it alike: the worker cannot choose
// what comes next. What it can do is to be as fast as when it is alone, whatever the flooded VM is like: the other one gets its
// part of what the worker can take.
func TestAFloodAtOneVMTakesNoMoreThanItsFrames(t *testing.T) {
	const flood = 1_500_000
	for name, kind := range map[string]func(*simVM){"takes all": plain, "has no buffers": stuck, "posts chains of 1,024": chopped} {
		s := newSim(t)
		bad, v := s.vm(kind), s.vm()
		bad.receives(flood, bad.datagram())
		v.receives(paced, v.datagram())
		s.measure(400 * time.Millisecond)
		takes := int(time.Second) / (costRx + costRx/20) // packets a second, and a little for the turns
		atLeast(t, "beside a flood at a VM that "+name, v.guest.got, 4*takes/10*paced/(flood+paced), 90)
	}
}

// longestTurn is the bound that docs/architecture.md gives, with the simulator's costs: what comes in, what guests make the worker
// look at, what goes out.
func longestTurn(vms int) int64 {
	in := rxBursts * BurstFrames * costRx
	walked := costPiece * (max(walkTurn, vms*walkLeast) + 2*1024*vms) // the last frame of each may be one of long chains, tried as a superframe first
	out := (txTurn/perPacket+maxTxPackets)*costTx + (2048+1024)*costPiece + (512<<10+64<<10)/costBytes
	looks := costLook * (2 + rxBursts + 8) * vms
	return int64(costTurn + in + walked + out + looks + simNap)
}

// However many hostile VMs there are, a turn has a bound, and a packet reaches its guest within its hold and two turns: one in
// which it came, and one in which it is due.
func TestATurnHasABoundAndSoHasAHold(t *testing.T) {
	const hold = 50 * time.Microsecond
	s := newSim(t)
	for i := range 60 {
		v := s.vm([]func(*simVM){cruel(8), longChains(8), bulk(8), small(8)}[i%4], []func(*simVM){chopped, stuck, plain, onTap, stuckTap}[i%5])
		v.receives(4_000, v.trainOf(45)...)
	}
	good := s.vm()
	r := rules()
	r.Hold = hold
	if err := s.w.table.SetPort(good.index, r, s.now); err != nil {
		t.Fatal(err)
	}
	st := good.receives(paced, good.trainOf(20)...)
	st.timed = true
	s.measure(400 * time.Millisecond)
	bound := longestTurn(len(s.vms))
	t.Logf("the longest turn %v, bound %v; the longest way %v", time.Duration(s.longest), time.Duration(bound), time.Duration(st.longest))
	if s.longest > bound {
		t.Errorf("a turn of %v, want at most %v", time.Duration(s.longest), time.Duration(bound))
	}
	if st.longest == 0 || st.longest > int64(hold)+2*bound {
		t.Errorf("a packet took %v, want at most %v", time.Duration(st.longest), hold+2*time.Duration(bound))
	}
	atLeast(t, "packets", good.guest.got, good.came, 99)
}
