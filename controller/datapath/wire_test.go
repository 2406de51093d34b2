package datapath

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A guest's TSO frame leaves whole, in one piece with what was checked, and the wire carries what we would have cut.
func TestATSOFrameLeavesByTheKernel(t *testing.T) {
	for _, vlan := range []uint16{0, 5} {
		r, k := newWireRig(t)
		_, s := r.sender(1, func(c *PortConfig) { c.Addr.VLAN = vlan })
		s.head = HeadRoom
		p := from(1, wire, 5000)
		frame := p.With(func(p *pt.TCP) { p.Partial = true }).Frame()
		s.send(kernelCuts(virtio.GSOTCPv4, 1000), frame, frame)
		r.step()
		if len(k.got) != 2 || k.sends != 1 || len(r.nic.sent()) != 0 {
			t.Fatalf("%d frames by the kernel in %d calls", len(k.got), k.sends)
		}
		tagged := from(1, wire, 1000)
		if vlan != 0 {
			tagged.Tags = []uint16{vlan}
		}
		want := train(tagged, 5)
		same(t, "on the wire", k.packets(), append(want, want...))
		if c := r.w.ports[1].cnt; c.TxFrames != 2 || c.TxBytes != uint64(2*len(frame)) || c.TxWire != 10 || c.TxKernel != 2 || r.w.cnt.TxKernel != 2 {
			t.Errorf("port %+v", c)
		}
		r.txDropped(1, nil)
	}
}

// A guest with a small MSS makes frames of more packets than a TX ring has to have room for.
func TestATSOFrameOf303PacketsLeaves(t *testing.T) {
	r, k := newWireRig(t)
	_, s := r.sender(1)
	s.head = HeadRoom
	s.send(kernelCuts(virtio.GSOTCPv4, 216), from(1, wire, 303*216).Frame())
	r.step()
	same(t, "on the wire", k.packets(), train(from(1, wire, 216), 303))
	r.txDropped(1, nil)
}

// What is small and comes alone goes by AF_XDP; beside a bulk transfer it goes the same way, and some time after it AF_XDP's again.
func TestTheWayFollowsWhatTheGuestSends(t *testing.T) {
	r, k := newWireRig(t)
	_, s := r.sender(1)
	s.head = HeadRoom
	small := from(1, wire, 100)
	partial := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}
	asPartial := small.With(func(p *pt.TCP) { p.Partial = true }).Frame()
	bulk := from(1, wire, 3000).Frame()
	step := func(what string, kernel, xdp int) {
		t.Helper()
		r.step()
		if len(k.got) != kernel || len(r.nic.wire) != xdp {
			t.Fatalf("%s: %d by the kernel, %d by AF_XDP", what, len(k.got), len(r.nic.wire))
		}
		got := append(k.packets(), r.nic.sent()...)
		for _, b := range got {
			if len(b) == len(asPartial) {
				same(t, what, [][]byte{b}, [][]byte{small.Frame()})
			}
		}
	}
	s.send(noHdr, small.Frame())
	step("a small one alone", 0, 1)
	s.send(partial, asPartial)
	step("one with a partial checksum", 0, 1)
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), bulk)
	s.send(partial, asPartial)
	s.send(noHdr, small.Frame())
	step("beside a bulk transfer", 3, 0)
	r.advance(wayRest - 1)
	s.send(partial, asPartial)
	step("shortly after it", 1, 0)
	r.advance(1)
	k.busy = true
	s.send(partial, asPartial, asPartial)
	step("while its frames are on their way", 2, 0)
	if k.asked != 2 {
		t.Errorf("asked the kernel %d times", k.asked)
	}
	k.busy = false
	s.send(partial, asPartial)
	step("after all", 0, 1)
}

// A virtqueue whose frames wait in the TX ring does not send others past them.
func TestAFlowWaitsForItsFramesOnTheOldWay(t *testing.T) {
	r, k := newWireRig(t)
	r.nic.busy = true
	_, s := r.sender(1)
	_, other := r.sender(2)
	s.head, other.head = HeadRoom, HeadRoom
	s.send(noHdr, from(1, wire, 100).Frame())
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), from(1, wire, 3000).Frame())
	r.step()
	other.send(kernelCuts(virtio.GSOTCPv4, 1000), from(2, wire, 3000).Frame())
	r.step()
	if len(k.got) != 1 || len(s.queue) != 1 {
		t.Fatalf("%d by the kernel, %d wait: want the other VM's alone", len(k.got), len(s.queue))
	}
	if d := r.w.timeout(); d != txRetry {
		t.Errorf("sleeps %v", d)
	}
	r.nic.busy = false
	r.step()
	r.step()
	if len(k.got) != 2 || len(s.queue) != 0 {
		t.Errorf("%d by the kernel, %d wait", len(k.got), len(s.queue))
	}
}

// A socket that is full slows the guest down: what was not sent stays in its virtqueue, in order, and is tried again after a while.
func TestAFullSocketLeavesFramesInTheVirtqueue(t *testing.T) {
	r, k := newWireRig(t)
	k.room = 1
	_, s := r.sender(1)
	_, other := r.sender(2)
	s.head = HeadRoom
	bulk := from(1, wire, 3000)
	for i := range 3 {
		bulk.Seq = uint32(3000 * i)
		s.send(kernelCuts(virtio.GSOTCPv4, 1000), bulk.Frame())
	}
	s.send(noHdr, from(2, wire, 50).Frame()) // refused once it is its turn
	small := from(2, wire, 100).Frame()
	other.send(noHdr, small)
	r.step()
	r.onWire(small) // who goes by AF_XDP is not held back
	if len(k.got) != 1 || len(s.queue) != 3 || r.w.ports[1].cnt.TxFrames != 1 || r.w.ports[1].cnt.TxWire != 3 {
		t.Fatalf("%d sent, %d wait, %+v", len(k.got), len(s.queue), r.w.ports[1].cnt)
	}
	sends := k.sends
	for range 5 {
		r.step()
	}
	if k.sends > sends+5 {
		t.Errorf("%d calls in 5 turns", k.sends-sends)
	}
	if d := r.w.timeout(); d != txRetry {
		t.Errorf("sleeps %v", d)
	}
	r.txDropped(1, nil)
	k.room = -1
	r.step()
	got := k.packets()
	if len(got) != 9 {
		t.Fatalf("%d packets", len(got))
	}
	for i := range got {
		if string(got[i][38:42]) != string(seqOf(uint32(1000*i))) {
			t.Errorf("packet %d has sequence %x", i, got[i][38:42])
		}
	}
	r.txDropped(1, byReason{flowtable.ReasonSourceMAC: 1})
	if c := r.w.ports[1].cnt; c.TxFrames != 3 || c.TxKernel != 3 || c.TxWire != 9 {
		t.Errorf("%+v", c)
	}
}

func seqOf(n uint32) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

// A frame that a full queue drops again and again is given up, and counted: the others get their turn.
func TestAFrameThatIsAlwaysLostIsGivenUp(t *testing.T) {
	r, k := newWireRig(t)
	k.room, k.full = 0, tap.ErrLost
	_, s := r.sender(1)
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), from(1, wire, 3000).Frame(), from(1, wire, 2000).Frame())
	for range wireTries {
		r.step()
	}
	if len(s.queue) != 2 || k.sends != wireTries {
		t.Fatalf("%d wait after %d tries", len(s.queue), k.sends)
	}
	r.step()
	if len(s.queue) != 1 || r.w.cnt.TxRingFull != 1 {
		t.Errorf("%d wait, %d given up", len(s.queue), r.w.cnt.TxRingFull)
	}
	k.room = -1
	r.step()
	if len(k.got) != 1 || len(s.queue) != 0 {
		t.Errorf("%d sent, %d wait", len(k.got), len(s.queue))
	}
}

// A frame that the kernel refuses, as the MTU changed a moment ago, takes nothing with it.
func TestAFrameThatTheKernelRefusesIsCounted(t *testing.T) {
	r, k := newWireRig(t)
	k.room, k.full = 1, tap.ErrKernelRefused
	_, s := r.sender(1)
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), from(1, wire, 3000).Frame(), from(1, wire, 2000).Frame(), from(1, wire, 4000).Frame())
	s.used = func() { k.room = -1 }
	r.step()
	if n := len(k.packets()); n != 3+4 || len(s.queue) != 0 {
		t.Errorf("%d packets, %d wait", n, len(s.queue))
	}
	r.txDropped(1, byReason{flowtable.ReasonMalformed: 1})
	if c := r.w.ports[1].cnt; c.TxFrames != 2 || c.TxWire != 7 {
		t.Errorf("%+v", c)
	}
}

// A link that is down makes the worker sleep, and loses nothing.
func TestALinkThatIsDownKeepsTSOFrames(t *testing.T) {
	r, k := newWireRig(t)
	k.room, k.full = 0, tap.ErrDown
	_, s := r.sender(1)
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), from(1, wire, 3000).Frame())
	r.step()
	if d := r.w.timeout(); len(s.queue) != 1 || d != errorBackoff {
		t.Errorf("%d wait, sleeps %v", len(s.queue), d)
	}
	k.room = -1
	r.step()
	if len(k.got) != 1 {
		t.Error("not sent when the link was up")
	}
}

// Frames to a VM beside are cut and delivered here, groups go as they went, and the frames of all of them in their order.
func TestOnlyFramesToTheWireLeaveByTheKernel(t *testing.T) {
	r, k := newWireRig(t)
	_, s := r.sender(1)
	s.head = HeadRoom
	near := r.vm(2)
	there := train(from(1, macOf(2), 1000), 3)
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), from(1, wire, 2000).Frame(), from(1, macOf(2), 3000).Frame(), from(1, wire, 3000).Frame())
	group := pt.UDP{SrcMAC: macOf(1), DstMAC: [6]byte{0x01, 0, 0x5e, 1, 2, 3}, Len: 50}.Frame()
	s.send(noHdr, group)
	r.step()
	r.step()
	packets(t, near.got, append(there, group)...)
	r.onWire(group)
	if n := len(k.packets()); n != 5 {
		t.Errorf("%d packets by the kernel", n)
	}
}

// Frames that may not leave do not, whatever way the others of their VM go.
func TestTheRulesHoldOnTheKernelsWay(t *testing.T) {
	r, k := newWireRig(t)
	_, s := r.sender(1)
	s.head = HeadRoom
	h := kernelCuts(virtio.GSOTCPv4, 1000)
	ok := from(1, wire, 3000)
	s.send(h, ok.Frame(), from(2, wire, 3000).Frame(), ok.With(func(p *pt.TCP) { p.Tags = []uint16{5} }).Frame(), ok.Frame())
	s.send(kernelCuts(virtio.GSOTCPv4, 1449), ok.Frame())
	s.send(kernelCuts(virtio.GSOTCPv4, 2), ok.Frame())
	s.send(kernelCuts(virtio.GSOTCPv6, 1000), ok.Frame())
	s.send(noHdr, ok.With(func(p *pt.TCP) { p.Len = 1449 }).Frame())
	s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 2000, CsumOffset: 16}, ok.With(func(p *pt.TCP) { p.Len = 100 }).Frame())
	s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 0, CsumOffset: 6}, ok.With(func(p *pt.TCP) { p.Len = 100 }).Frame())
	for range 4 {
		r.step()
	}
	if n := len(k.packets()); n != 6 || len(r.nic.sent()) != 0 || len(s.queue) != 0 {
		t.Errorf("%d packets by the kernel, %d frames left", n, len(s.queue))
	}
	r.txDropped(1, byReason{flowtable.ReasonSourceMAC: 1, flowtable.ReasonVLANForeign: 1, flowtable.ReasonBadLength: 3, flowtable.ReasonMalformed: 3})
}

// A guest that writes to its frames all the time changes its payload, and neither addresses nor tag nor lengths.
func TestAGuestThatRewritesItsHeadersChangesNothing(t *testing.T) {
	r, k := newWireRig(t)
	_, s := r.sender(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
	s.head = HeadRoom
	rng := rand.New(rand.NewPCG(1, 2))
	s.race = func(rest [][]byte) {
		for _, b := range rest {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
	}
	frame := from(1, wire, 5000).Frame()
	tagged := from(1, wire, 1000)
	tagged.Tags = []uint16{5}
	want := train(tagged, 5)
	for range 50 {
		s.send(kernelCuts(virtio.GSOTCPv4, 1000), frame)
		r.step()
		got := k.packets()
		if len(got) != 5 {
			t.Fatalf("%d packets", len(got))
		}
		for i, b := range got {
			if string(b[:18+20]) != string(want[i][:18+20]) {
				t.Fatalf("headers changed: %x", head(b))
			}
		}
	}
}

// However a guest mixes what it sends, and whenever the two ways have room, each flow leaves in its order and once.
func TestNothingOvertakesWhenTheWayChanges(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var left []int
		r, k := newWireRig(t)
		_, s := r.sender(1)
		s.head = HeadRoom
		number := func(b []byte) int { return int(b[38])<<24 | int(b[39])<<16 | int(b[40])<<8 | int(b[41]) }
		next, total := 0, 0
		collect := func() {
			xdp, kernel := r.nic.sent(), k.packets()
			if len(xdp) > 0 && len(kernel) > 0 { // in one turn: AF_XDP's were completed before the kernel got its first
				first, last := number(xdp[0]), number(xdp[len(xdp)-1])
				if n := number(kernel[0]); n > first && n < last {
					t.Fatalf("seed %d: %d left between %d and %d", seed, n, first, last)
				}
				if number(kernel[0]) < first {
					xdp, kernel = kernel, xdp
				}
			}
			for _, b := range append(xdp, kernel...) {
				left = append(left, number(b))
			}
		}
		for range 400 {
			for range rng.IntN(6) {
				p := from(1, wire, 100)
				p.Seq, p.Opts = uint32(total), nil
				h := noHdr
				if rng.IntN(4) == 0 {
					p.Len, h = 100*(2+rng.IntN(9)), kernelCuts(virtio.GSOTCPv4, 100)
				}
				s.send(h, p.Frame())
				total += p.Len
			}
			r.nic.busy, k.busy, k.room = rng.IntN(3) == 0, rng.IntN(3) == 0, rng.IntN(12)-1
			if k.full = tap.ErrFull; rng.IntN(9) == 0 {
				k.full = tap.ErrLost
			}
			r.step()
			collect()
			r.advance(time.Duration(rng.IntN(4)) * wayRest / 2)
		}
		for range 50 {
			r.nic.busy, k.busy, k.room = false, false, -1
			r.step()
			collect()
		}
		for _, n := range left {
			if n != next {
				t.Fatalf("seed %d: %d left where %d was due", seed, n, next)
			}
			next += 100
		}
		if next != total {
			t.Fatalf("seed %d: %d of %d bytes left", seed, next, total)
		}
	}
}

// Whoever listens hears of the frame as it leaves.
func TestAProbeHearsOfWhatLeavesByTheKernel(t *testing.T) {
	r, k := newWireRig(t)
	_, s := r.sender(1)
	s.head = HeadRoom
	pr := NewProbe(ProbeConfig{Kind: ProbeWire, SnapLen: MaxSnapLen, Memory: 1 << 20})
	r.w.ports[1].probes = []*Probe{pr}
	frame := from(1, wire, 3000).Frame()
	s.send(kernelCuts(virtio.GSOTCPv4, 1000), frame)
	s.send(kernelCuts(virtio.GSOTCPv4, 2000), frame) // may not leave
	r.step()
	var rec ProbeRecord
	if len(k.got) != 1 || !pr.Next(&rec) || rec.Deed != Sent || !rec.ToWire || !bytes.Equal(rec.Data, k.got[0].data) {
		t.Errorf("%d sent; heard of %v, %d bytes", len(k.got), rec.Deed, len(rec.Data))
	}
	if !pr.Next(&rec) || rec.Deed != Dropped || rec.Reason != flowtable.ReasonBadLength || len(rec.Data) != len(frame) {
		t.Errorf("heard of %v for %v, %d bytes", rec.Deed, rec.Reason, len(rec.Data))
	}
}

// A VM that sends by the kernel is kept to its rate as any, and frames that a full socket sends back cost it nothing.
func TestAVMSendsAtItsRateByTheKernel(t *testing.T) {
	r, k := newWireRig(t)
	const rate, burst = 100_000_000, 32 << 10
	_, s := r.sender(1, func(c *PortConfig) { c.TxRate = NewBucket(rate, burst) })
	s.head = HeadRoom
	const frames, segments, payload = 200, 20, 1000
	p := from(1, wire, segments*payload)
	for i := range frames {
		p.Seq = uint32(i * segments * payload)
		s.send(kernelCuts(virtio.GSOTCPv4, payload), p.Frame())
	}
	begin, all := r.now.Load(), 0
	for steps := 0; len(s.queue) > 0; steps++ {
		if k.room = -1; steps%3 == 0 {
			k.room = 1
		}
		r.step()
		if wait := r.w.timeout(); wait > 0 {
			r.advance(wait)
		}
		if steps > 1<<16 {
			t.Fatalf("%d frames still wait", len(s.queue))
		}
	}
	for _, f := range k.packets() {
		all += len(f)
	}
	if want := frames * segments * (payload + 66); all != want {
		t.Fatalf("%d bytes on the wire, want %d", all, want)
	}
	want := float64(all-burst) * 8 / rate
	if got := float64(r.now.Load()-begin) / 1e9; got < 0.95*want || got > 1.05*want {
		t.Errorf("%d bytes took %.4f s, want %.4f", all, got, want)
	}
	if c := r.w.ports[1].cnt; c.TxPaced == 0 || c.TxKernel != frames {
		t.Errorf("%+v", c)
	}
}
