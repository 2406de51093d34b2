package datapath

import (
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Why a superframe is cut again, and how its packets are booked.
var recuts = map[string]struct {
	set func(g *fakeGuest)
	why flowtable.Reason
}{
	"too big":        {func(g *fakeGuest) { g.longest = 1000 }, flowtable.ReasonMaxBytes},
	"not negotiated": {func(g *fakeGuest) { g.noOffer = func(h *virtio.NetHdr) bool { return h.GSOType != 0 } }, flowtable.ReasonNotNegotiated},
}

func forRecuts(t *testing.T, f func(t *testing.T, r *rig, g *fakeGuest, why flowtable.Reason)) {
	for name, c := range recuts {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			g := r.vm(1)
			c.set(g)
			f(t, r, g, c.why)
		})
	}
}

func TestASuperframeThatIsCutAgainGivesThePacketsBitForBit(t *testing.T) {
	forRecuts(t, func(t *testing.T, r *rig, g *fakeGuest, why flowtable.Reason) {
		a, b := to(1, 1000), to(1, 700)
		b.SrcPort, b.V6 = 2000, true
		fixed := to(1, 500)
		fixed.SrcPort, fixed.ID = 3000, 77
		want := append(train(a, 5), train(b, 4)...)
		for range 3 { // a train whose IPv4 ID stands still
			want = append(want, fixed.Frame())
			fixed = fixed.Next()
			fixed.ID = 77
		}
		want[11] = fixed.With(func(p *pt.TCP) { p.Seq -= 500; p.Len = 123; p.Flags = pt.ACK | pt.PSH }).Frame() // and ends short
		r.inject(want...)
		free := r.nic.with(inPool) + r.nic.with(inFill)
		r.step()
		packets(t, g.got, want...)
		for _, f := range g.got {
			if (f.hdr != virtio.NetHdr{}) || f.refs != nil {
				t.Fatalf("a piece with header %+v and chunks %v", f.hdr, f.refs)
			}
		}
		l := r.ledger(1)
		r.passed(1, byReason{why: 12})
		if l.Merged != 0 || l.Superframes != 0 || l.Frames != 12 || l.Sealed != [flowtable.NumReasons]uint64{} {
			t.Errorf("ledger: %+v", *l)
		}
		bytes := uint64(0)
		for _, f := range want {
			bytes += uint64(len(f))
		}
		if l.FrameBytes != bytes {
			t.Errorf("%d bytes delivered, want %d", l.FrameBytes, bytes)
		}
		if got := r.nic.with(inPool) + r.nic.with(inFill); got-free != 12 {
			t.Errorf("%d of 12 chunks came back", got-free)
		}
		if c := r.w.ports[1].cnt; c.Recut != 3 {
			t.Errorf("%d superframes cut again, want 3", c.Recut)
		}
	})
}

// So it does when its packets are longer than the MTU: one that was lowered changes nothing of what others send.
func TestASuperframeOfAnEarlierMTUIsCutAgain(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MTU = 500 })
	g := r.vm(1)
	recuts["too big"].set(g)
	want := train(to(1, 1400), 5)
	r.inject(want...)
	r.step()
	packets(t, g.got, want...)
	r.dropped(1, nil)
}

// Buffers run out in the middle, at every place.
func TestACutSuperframeGoesOnWhereBuffersRanOut(t *testing.T) {
	forRecuts(t, func(t *testing.T, r *rig, g *fakeGuest, why flowtable.Reason) {
		for first := range 7 {
			for then := 1; then < 4; then++ {
				want := train(to(1, 900), 6)
				g.room = first
				r.inject(want...)
				r.step()
				if first < 6 && (len(g.got) != first || r.w.ports[1].out.n != 1 || r.w.ports[1].out.chunks != 6) {
					t.Fatalf("%d pieces, %d frames of %d chunks wait", len(g.got), r.w.ports[1].out.n, r.w.ports[1].out.chunks)
				}
				for range 10 {
					g.room = then
					r.step()
				}
				packets(t, g.take(), want...)
				if r.w.ports[1].out.n != 0 || r.hungry() != 0 {
					t.Fatal("something waits")
				}
			}
		}
		r.dropped(1, nil)
		r.passed(1, byReason{why: 7 * 3 * 6})
	})
}

// What came behind a superframe that leaves in pieces stays behind it, and a whole frame in front of it before it.
func TestPiecesAndWholeFramesKeepTheirOrder(t *testing.T) {
	forRecuts(t, func(t *testing.T, r *rig, g *fakeGuest, _ flowtable.Reason) {
		p := to(1, 400)
		p.Flags = pt.ACK | pt.PSH
		lone := train(p, 6)
		q := to(1, 800)
		q.SrcPort = 2000
		want := append(append(append([][]byte{}, lone[:3]...), train(q, 5)...), lone[3:]...)
		for room := 1; room < 12; room++ {
			g.room = room
			r.inject(want...)
			r.step()
			for range 12 {
				g.room = room
				r.step()
			}
			packets(t, g.take(), want...)
		}
	})
}

// A Commit may count some of a superframe's pieces only.
func TestACommitMayEndAmongPieces(t *testing.T) {
	forRecuts(t, func(t *testing.T, r *rig, g *fakeGuest, why flowtable.Reason) {
		n := uint64(0)
		for most := 1; most < 9; most++ {
			p := to(1, 400)
			p.Flags = pt.ACK | pt.PSH
			q := to(1, 800)
			q.SrcPort = 2000
			want := append(train(p, 1), append(train(q, 5), train(p.Next(), 2)...)...)
			g.most = most
			r.inject(want...)
			r.step()
			for range 9 {
				r.step()
			}
			packets(t, g.take(), want...)
			n++
		}
		r.passed(1, byReason{why: n * 5, flowtable.ReasonPSH: n * 3})
		r.dropped(1, nil)
	})
}

// A burst may end among pieces, and the next one goes on.
func TestABurstMayEndAmongPieces(t *testing.T) {
	forRecuts(t, func(t *testing.T, r *rig, g *fakeGuest, _ flowtable.Reason) {
		for burst := 1; burst < 9; burst++ {
			g.burst = burst
			want := train(to(1, 800), 7)
			r.inject(want...)
			r.step()
			packets(t, g.take(), want...)
		}
	})
}

// The pieces that arrived were passed; the rest was dropped.
func TestASuperframeGivenUpInTheMiddleIsBookedPacketByPacket(t *testing.T) {
	for name, c := range map[string]struct {
		then func(r *rig, g *fakeGuest)
		why  flowtable.Reason
	}{
		"the guest stops":   {func(_ *rig, g *fakeGuest) { g.stopped = true }, flowtable.ReasonPortDown},
		"the guest ends":    {func(_ *rig, g *fakeGuest) { g.room, g.broken = -1, errFinished }, flowtable.ReasonPortDown},
		"the port stops":    {func(r *rig, g *fakeGuest) { g.room = 0; r.w.stopPort(1) }, flowtable.ReasonPortDown},
		"a piece is bad":    {func(_ *rig, g *fakeGuest) { g.room, g.refuse = -1, func(*Frame) bool { return true } }, flowtable.ReasonBadLength},
		"a piece is long":   {func(_ *rig, g *fakeGuest) { g.room, g.longLone = -1, 100 }, flowtable.ReasonBadLength},
		"the link is down":  {func(_ *rig, g *fakeGuest) { g.room, g.linkDown = -1, true }, flowtable.ReasonPortDown},
		"the worker stops":  {func(r *rig, g *fakeGuest) { g.room = 0; r.w.finish() }, flowtable.ReasonPortDown},
		"the VM is removed": {func(r *rig, g *fakeGuest) { g.room = 0; r.w.removePort(1) }, flowtable.ReasonPortDown},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			g := r.vm(1)
			g.longest, g.room = 1514, 3
			want := train(to(1, 1000), 8)
			want[7] = to(1, 1000).With(func(p *pt.TCP) { p.Seq, p.ID, p.Len = 7000, 7, 10 }).Frame()
			r.inject(want...)
			r.step()
			packets(t, g.got, want[:3]...)
			p := r.w.ports[1]
			c.then(r, g)
			r.step()
			l := r.ledger(1)
			r.passed(1, byReason{flowtable.ReasonMaxBytes: 3})
			r.dropped(1, byReason{c.why: 5})
			if l.Unexplained() != 0 || l.Frames != 3 || l.FrameBytes != 3*1066 || l.Superframes != 0 {
				t.Errorf("ledger: %+v", *l)
			}
			if p.cnt.Recut != 1 {
				t.Errorf("%d superframes cut again", p.cnt.Recut)
			}
			if r.nic.with(inWorker) != 0 {
				t.Errorf("%d chunks did not come back", r.nic.with(inWorker))
			}
		})
	}
}

// A frame of which no piece arrived is dropped as a whole.
func TestASuperframeOfWhichNothingArrivedIsDroppedWhole(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.longest, g.longLone = 1514, 100
	r.inject(train(to(1, 1000), 4)...)
	r.step()
	r.dropped(1, byReason{flowtable.ReasonBadLength: 4})
	if l := r.ledger(1); l.Frames != 0 || l.FrameBytes != 0 || len(g.got) != 0 || r.w.ports[1].cnt.Recut != 0 {
		t.Errorf("ledger: %+v", *l)
	}
}

// An rsc superframe has absorbed window updates, and segments of several sizes: its pieces are fewer than its packets.
func TestAnRSCSuperframeThatIsCutAgainExplainsAllOfItsPackets(t *testing.T) {
	for _, room := range []int{-1, 1} {
		r := newRig(t)
		g := r.vm(1)
		c := rules(func(c *flowtable.PortConfig) { c.Profile, c.RSCExt, c.Hold = flowtable.RSC, true, time.Second })
		if err := r.w.table.SetPort(1, c, 0); err != nil {
			t.Fatal(err)
		}
		g.longest, g.room = 1000, room
		p := to(1, 100)
		frames := train(p, 3)
		long := to(1, 1000)
		long.Seq, long.ID = 300, 3
		frames = append(frames, long.Frame())
		update := to(1, 0)
		update.Seq, update.ID, update.Win = 1300, 4, 1000
		frames = append(frames, update.Frame())
		r.inject(frames...)
		r.advance(2 * time.Second)
		r.step()
		r.advance(2 * time.Second)
		r.step()
		if room == 1 {
			g.stopped = true
			r.step()
			r.passed(1, byReason{flowtable.ReasonMaxBytes: 1})
			r.dropped(1, byReason{flowtable.ReasonPortDown: 4})
			continue
		}
		if len(g.got) != 2 || len(g.got[0].data) != 1066 || len(g.got[1].data) != 366 {
			t.Fatalf("%d pieces", len(g.got))
		}
		r.passed(1, byReason{flowtable.ReasonMaxBytes: 5})
		if l := r.ledger(1); l.Frames != 2 || l.FrameBytes != 1066+366 {
			t.Errorf("ledger: %+v", *l)
		}
	}
}

// A guest that lost GUEST_CSUM does not take DATA_VALID. The frame is sound without the claim.
func TestALoneFrameLosesItsClaimRatherThanItself(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	g.noOffer = func(h *virtio.NetHdr) bool { return h.Flags != 0 }
	p := to(1, 200)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, 3)
	r.inject(want...)
	g.room = 1
	r.step()
	g.room = -1
	r.step()
	packets(t, g.got, want...)
	for _, f := range g.got {
		if f.hdr.Flags != 0 {
			t.Errorf("flags %d", f.hdr.Flags)
		}
	}
	r.passed(1, byReason{flowtable.ReasonPSH: 3})
	r.dropped(1, nil)
}

// The frame sizes of a port are those of the TCP frames that its guest got.
func TestFrameSizesAreThoseDelivered(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	sizes := func() map[int]uint64 {
		m := map[int]uint64{}
		for i, n := range r.w.ports[1].cnt.FrameSizes {
			if n > 0 {
				m[i] = n
			}
		}
		return m
	}
	r.inject(pt.UDP{DstMAC: macOf(1), Len: 1000}.Frame()) // no TCP
	r.inject(to(1, 62).Frame(), to(1, 63).With(func(p *pt.TCP) { p.SrcPort = 9 }).Frame())
	r.inject(train(to(1, 1448).With(func(p *pt.TCP) { p.SrcPort = 10 }), 10)...)
	r.step()
	if got := sizes(); len(got) != 3 || got[0] != 1 || got[1] != 1 || got[4] != 1 {
		t.Errorf("sizes %v: want one of up to 128, one above, one of 14,546", got)
	}
	whole := r.w.ports[1].cnt.SizeSum
	if whole <= 10*1448 || whole != r.ledger(1).FrameBytes-1042 { // the datagram
		t.Errorf("sizes sum up to %d of %d bytes", whole, r.ledger(1).FrameBytes)
	}
	g.longest = 1514
	r.inject(train(to(1, 1448), 10)...)
	r.step()
	if got := sizes(); got[1] != 11 {
		t.Errorf("sizes %v: ten pieces are ten frames", got)
	}
	if n := r.w.ports[1].cnt.SizeSum - whole; n != 10*1514 {
		t.Errorf("ten pieces sum up to %d bytes", n)
	}
	for _, c := range []struct{ n, bucket int }{{0, 0}, {128, 0}, {129, 1}, {1514, 1}, {1515, 2}, {65549, 7}, {65550, 8}} {
		if got := sizeBucket(c.n); got != c.bucket {
			t.Errorf("%d bytes are in bucket %d, want %d", c.n, got, c.bucket)
		}
	}
}

// A place in the queue that held a superframe which left in pieces is used again, for a frame that leaves whole.
func TestAPlaceInTheQueueHasNoPast(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	r.shortQueue(1, 2)
	p := to(1, 1000)
	lone := to(1, 300)
	lone.SrcPort, lone.Flags = 99, pt.ACK|pt.PSH
	for i := range 7 {
		g.longest, g.room = 1514*(1-i%2), 2
		frames := append(train(p, 4), lone.Frame())
		r.inject(frames...)
		for range 4 {
			r.step()
			g.room = 2
		}
		if n := len(g.got); i%2 == 1 && n != 2 || i%2 == 0 && n != 5 {
			t.Errorf("round %d: %d frames", i, n)
		}
		packets(t, g.take(), frames...)
	}
	r.dropped(1, nil)
	r.passed(1, byReason{flowtable.ReasonMaxBytes: 4 * 4, flowtable.ReasonPSH: 7})
}
