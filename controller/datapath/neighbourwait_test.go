package datapath

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// What a receiver has no room for waits in chunks of ours: the sender has its memory back, and may write what it likes.
func TestASuperframeWaitsForItsNeighbourAsACopy(t *testing.T) {
	for _, head := range []int{0, HeadRoom} {
		r := newRig(t)
		s, g := r.neighbours(head, rules())
		s.race = func(rest [][]byte) {
			for _, b := range rest {
				for i := range b {
					b[i] = poison
				}
			}
		}
		g.room = 1
		h, frame := tsoTo(false, 20000, 1448)
		var want [][]byte
		for i := range 4 {
			binary.BigEndian.PutUint32(frame[38:], uint32(7+i*20000)) // the sequence number
			want = append(want, cutBy(t, h, frame)...)
			s.send(h, slices.Clone(frame))
		}
		r.step()
		r.step()
		if n := r.w.ports[2].out.n; n != 3 || len(s.queue) != 0 {
			t.Fatalf("%d frames wait, %d are left", n, len(s.queue))
		}
		g.room = -1
		r.step()
		got := g.take()
		if len(got) != 4 {
			t.Errorf("%d frames", len(got))
		}
		packets(t, got, want...)
		r.dropped(2, nil)
	}
}

// Where even the copy finds no chunk the frame is the receiver's loss, packet by packet in the books.
func TestASuperframeWithoutRoomIsTheReceiversLoss(t *testing.T) {
	r := newRig(t)
	s, g := r.neighbours(HeadRoom, rules())
	r.nic.txSize = 1024
	r.nic.keep(1024)
	g.room = 0
	h, frame := tsoTo(false, 60000, 1448)
	for range 40 { // 33 chunks each, of the 512 that may wait
		s.send(h, frame)
	}
	for range 20 {
		r.step()
	}
	l, p := r.ledger(2), r.w.ports[2]
	if lost := l.Dropped[flowtable.ReasonGuestNoBuffers]; lost == 0 || len(s.queue) != 0 || l.In != 40*42 || l.Queued+lost != l.In || p.out.chunks > 512 {
		t.Errorf("%+v, %d chunks wait", *l, p.out.chunks)
	}
	g.room = -1
	r.step()
	if len(g.take()) == 0 || r.nic.with(inWorker) != 0 {
		t.Errorf("%d chunks are out", r.nic.with(inWorker))
	}
}

// A VM with no chunk to copy to waits with its frame, as for room on the wire.
func TestAFrameForABusyNeighbourWaitsForChunks(t *testing.T) {
	r := newRig(t)
	s, g := r.neighbours(HeadRoom, rules())
	g.room = 0
	h, frame := tsoTo(false, 60000, 1448)
	s.send(h, frame)
	r.step() // waits in chunks, and the guest is known to have no room
	r.nic.set(func(n *fakeNIC) { n.txSize = 0 })
	s.send(h, frame)
	r.step()
	if len(s.queue) != 1 || len(g.take()) != 0 {
		t.Fatalf("%d frames left", len(s.queue))
	}
	r.nic.set(func(n *fakeNIC) { n.txSize = 64 })
	g.room = -1
	for range 3 {
		r.advance(txRetry)
		r.step()
	}
	if got := g.take(); len(got) != 2 {
		t.Errorf("%d frames", len(got))
	}
}

// Between isolated VMs nothing is handed over, whole or not, and it is counted packet by packet.
func TestIsolatedNeighboursGetNoSuperframe(t *testing.T) {
	for _, who := range []uint32{1, 2} {
		r := newRig(t)
		s, g := r.neighbours(HeadRoom, rules(), func(c *PortConfig) { c.Isolated = c.Index == who })
		h, frame := tsoTo(false, 5000, 1000)
		s.send(h, frame)
		r.step()
		r.txDropped(1, byReason{flowtable.ReasonIsolated: 5})
		if len(g.take()) != 0 || r.ledger(2).In != 0 || len(r.nic.sent()) != 0 {
			t.Error("it was handed over")
		}
	}
}

// VMs of other VLANs are no neighbours, and what is judged is judged as for the wire: source address, IP address.
func TestWhatIsJudgedIsJudgedBeforeASuperframeIsHandedOver(t *testing.T) {
	r := newRig(t)
	s, _ := r.neighbours(HeadRoom, rules())
	other := r.vm(3, func(c *PortConfig) { c.Addr.VLAN = 7 })
	h, frame := tsoTo(false, 5000, 1000, func(p *pt.TCP) { p.DstMAC = macOf(3) })
	s.send(h, frame)
	_, spoofed := tsoTo(false, 5000, 1000, func(p *pt.TCP) { p.SrcMAC = macOf(2) })
	s.send(h, spoofed)
	r.step()
	r.txDropped(1, byReason{flowtable.ReasonSourceMAC: 1})
	if n := len(r.nic.sent()); n != 5 || len(other.take()) != 0 {
		t.Errorf("%d packets on the wire", n)
	}
	r.w.ports[1].Sources = NewSources(nil)
	_, good := tsoTo(false, 5000, 1000)
	s.send(h, good)
	r.step()
	r.txDropped(1, byReason{flowtable.ReasonSourceMAC: 1, flowtable.ReasonSourceIP: 1})
}

// Rates hold for superframes between neighbours as for their packets: the sender's frame stays in its virtqueue, what comes for the receiver waits.
func TestRatesHoldForSuperframesBetweenNeighbours(t *testing.T) {
	const rate, burst = 80_000_000, 80_000 // 10 MB/s
	for _, tx := range []bool{true, false} {
		r := newRig(t)
		s, g := r.neighbours(HeadRoom, rules())
		b := NewBucket(rate, burst)
		if tx {
			r.w.ports[1].TxRate = b
		} else {
			r.w.ports[2].RxRate = b
		}
		h, frame := tsoTo(false, 60000, 1448)
		for range 10 {
			s.send(h, frame)
		}
		got := 0
		for r.now.Load() < int64(12*time.Millisecond) {
			r.step()
			r.advance(100 * time.Microsecond)
			got += len(g.take())
		}
		// 12 ms are 120 kB, and 80 kB at once. A frame takes 62,800 bytes, and the last one may be in debt.
		if got != 4 {
			t.Errorf("sending %v: %d frames", tx, got)
		}
		r.dropped(2, nil)
	}
}

// Listeners hear of the superframe as it is, on both sides, and of no other.
func TestListenersHearOfASuperframeBetweenNeighbours(t *testing.T) {
	r := newRig(t)
	s, _ := r.neighbours(HeadRoom, rules())
	sent := r.probe(1, ProbeConfig{Kind: ProbeWire})
	var heard []*Probe
	for _, k := range []ProbeKind{ProbeWire, ProbeFates, ProbeGuest} {
		heard = append(heard, r.probe(2, ProbeConfig{Kind: k}))
	}
	h, frame := tsoTo(false, 5000, 1000)
	s.send(h, frame)
	r.step()
	for i, pr := range append(heard, sent) {
		got := records(pr)
		if len(got) != 1 || got[0].Packets != 5 || int(got[0].Len) != len(frame) {
			t.Fatalf("probe %d: %+v", i, got)
		}
		if want := []Deed{Sealed, Sealed, Delivered, Sent}[i]; got[0].Deed != want || i < 3 && got[0].Reason != flowtable.ReasonGSOInput {
			t.Errorf("probe %d: deed %v, %v", i, got[0].Deed, got[0].Reason)
		}
	}
}
