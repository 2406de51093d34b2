package datapath

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost"
)

// floods queues a broadcast for each of the VMs whenever their queues are empty, for a time on the worker's clock, a turn of the
// worker each step of the clock.
func (l *lan) floods(d, step time.Duration, from ...*lanVM) {
	for end := l.now + d; l.now < end; l.now += step {
		for _, g := range from {
			for len(g.sends) < txBudget {
				g.sends = append(g.sends, vhost.TxFrame{Data: lanFrame(everybody, g.mac, 0x0806)})
			}
		}
		l.w.step()
	}
}

// within fails unless n lies between what a bound lets through in the long run and that with one burst more.
func within(t *testing.T, what string, n, least, most int) {
	t.Helper()
	if n < least || n > most {
		t.Errorf("%s: %d, want %d to %d", what, n, least, most)
	}
}

func TestBroadcastsOfAGuestHaveABound(t *testing.T) {
	for _, beside := range []int{0, 1, 31, 255} {
		t.Run(fmt.Sprintf("%d beside", beside), func(t *testing.T) {
			l := newLAN(t, 1024)
			l.nic.lazy = true
			g := l.vm()
			for range beside {
				l.vm()
			}
			l.floods(500*time.Millisecond, 200*time.Microsecond, g) // 320,000 frames a second, if the worker let them
			copies := 1 + beside
			within(t, "frames on the wire", int(l.w.cnt.TxFrames), groupRate/2/copies, (groupRate/2+groupBurst)/copies+1)
			for _, v := range l.vms[1:] {
				if v.count != int(l.w.cnt.TxFrames) {
					t.Fatalf("a neighbour heard %d frames of %d", v.count, l.w.cnt.TxFrames)
				}
			}
			p := l.w.port(0)
			if n := p.cnt.TxDropped[flowtable.ReasonGroupShare]; n == 0 {
				t.Error("nothing was counted")
			}
			// What is not to a group is not bound.
			before := p.cnt.TxDropped
			g.sends = nil
			for range 100 {
				l.send(g, lanFrame(lanStation, g.mac, 0x0800))
			}
			if p.cnt.TxDropped != before {
				t.Error("unicast frames were dropped")
			}
		})
	}
}

// The more VMs flood, the less each of them may: what one VM hears has a bound, however many there are.
func TestFloodsOfManyNeighboursTogetherHaveABound(t *testing.T) {
	const harm = 152_000 // broadcasts a second into a VM cost it 15 to 40 % of its unicast
	if groupRate > harm/4 {
		t.Errorf("%d a second are too many", groupRate)
	}
	for _, n := range []int{2, 8, 32} {
		l := newLAN(t, 4096)
		l.nic.lazy = true
		for range n {
			l.vm()
		}
		l.floods(time.Second, 800*time.Microsecond, l.vms...)
		for _, v := range l.vms {
			within(t, fmt.Sprintf("frames that one of %d VMs heard", n), v.count, groupRate/4, groupRate+groupBurst+n)
		}
	}
}

func TestHonestGroupFramesAllPass(t *testing.T) {
	for _, c := range []struct {
		name          string
		vms, at, each int // VMs; frames that each sends at once, so many times
		pause         time.Duration
	}{
		{"a full host boots: DHCP, DAD, MLD, RS, mDNS", 256, 8, 2, 250 * time.Millisecond},
		{"a scan of 254 addresses by ARP", 32, 254, 3, time.Second},
		{"router advertisements, VRRP, PTP", 256, 1, 300, 10 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLAN(t, 4096)
			l.nic.lazy = true
			for range c.vms {
				l.vm()
			}
			from := l.vms
			if c.at > 100 || c.each > 100 {
				from = from[:1]
			}
			for range c.each {
				for _, g := range from {
					for range c.at {
						l.send(g, lanFrame(everybody, g.mac, 0x0806))
					}
				}
				l.now += c.pause
			}
			for _, g := range from {
				dropsAre(t, "honest", l.txDropped(g), lanReasons{})
			}
			for _, v := range l.vms[1:] {
				if want := (len(from) - min(1, len(from)-1)) * c.at * c.each; v.count != want {
					t.Fatalf("a neighbour heard %d frames of %d", v.count, want)
				}
			}
		})
	}
}

// Copies cost the sender's part of the turn, so that a VM with many neighbours does not send for all of them.
func TestTheSenderPaysForTheCopies(t *testing.T) {
	l := newLAN(t, 4096)
	loud, honest := l.vm(), l.vm()
	for range 30 {
		l.vm()
	}
	l.send(loud, lanFrame(everybody, loud.mac, 0x0806)) // both have sent in the turn before
	l.send(honest, lanFrame(lanStation, honest.mac, 0x0800))
	l.sent()
	for range 4 {
		for range txBudget {
			loud.sends = append(loud.sends, vhost.TxFrame{Data: lanFrame(everybody, loud.mac, 0x0806)})
			honest.sends = append(honest.sends, vhost.TxFrame{Data: lanFrame(lanStation, honest.mac, 0x0800)})
		}
		l.w.step()
	}
	far, all := 0, 0
	for _, f := range l.sent() {
		if bytes.Equal(f[:6], everybody[:]) {
			all++
		} else {
			far++
		}
	}
	if copies := all * 32; far != 4*txBudget || copies > 4*txTurn+32 {
		t.Errorf("%d frames of the honest VM, %d copies of the loud one's", far, copies)
	}
}

// A copy that finds no chunk is the sender's loss. That a VM beside it keeps chunks is not the fault of those who hear.
func TestCopiesWithoutAChunkAreTheSenders(t *testing.T) {
	l := newLAN(t, 8)
	g, keeper := l.vm(), l.vm()
	keeper.keeps = true
	for range 7 {
		l.send(g, lanFrame(everybody, g.mac, 0x0806))
	}
	dropsAre(t, "while there were chunks", l.txDropped(g), lanReasons{})
	l.send(g, lanFrame(everybody, g.mac, 0x0806))
	dropsAre(t, "the sender", l.txDropped(g), lanReasons{flowtable.ReasonGroupShare: 1})
	dropsAre(t, "the VM beside it", l.rxDropped(keeper), lanReasons{})
	if n := len(l.sent()); n != 8 {
		t.Errorf("%d frames on the wire, want 8", n)
	}
}

// Copies wait in output queues until the end of a burst. When chunks run short they are made room for first.
func TestManyCopiesFitFewChunks(t *testing.T) {
	l := newLAN(t, 8)
	g := l.vm()
	for range 40 {
		l.vm()
	}
	l.send(g, lanFrame(everybody, g.mac, 0x0806))
	l.receiveGroup(lanGroupFrame{data: lanFrame(everybody, lanStation, 0x0806)})
	for _, v := range l.vms[1:] {
		if v.count != 2 {
			t.Errorf("%d frames, want 2", v.count)
		}
		dropsAre(t, "a neighbour", l.rxDropped(v), lanReasons{})
	}
	dropsAre(t, "the sender", l.txDropped(g), lanReasons{})
}

// A TSO frame to a group address becomes many packets for many neighbours: the bound holds within it.
func TestATSOFrameDoesNotPassTheBound(t *testing.T) {
	l := newLAN(t, 4096)
	l.nic.lazy = true
	g := l.vm()
	for range 255 {
		l.vm()
	}
	for range 4 {
		l.sendTSO(g, everybody, 256)
	}
	within(t, "packets on the wire", int(l.w.cnt.TxFrames), groupBurst/256, groupBurst/256+1)
}

func BenchmarkGroupCopy(b *testing.B) {
	for _, beside := range []int{1, 31, 255} {
		b.Run(fmt.Sprintf("beside=%d", beside), func(b *testing.B) {
			l := newLAN(b, 4096)
			l.nic.lazy = true
			g := l.vm()
			for range beside {
				l.vm()
			}
			f := vhost.TxFrame{Data: lanFrame(everybody, g.mac, 0x0806)}
			e := &egress{port: l.w.port(0)}
			for b.Loop() {
				l.w.now += int64(groupBurst * groupEvery)
				l.w.emitFrame(e, &f)
				l.w.flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(beside+1), "ns/copy")
		})
	}
}
