package datapath

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

var noHdr virtio.NetHdr

// sender adds a VM that sends.
func (r *rig) sender(index uint32, edits ...func(*PortConfig)) (*fakeGuest, *fakeSource) {
	r.tb.Helper()
	r.vm(index, edits...)
	s := &fakeSource{fd: -1}
	return r.start(index, rules(), s), s
}

// from is a packet of a VM to somebody on the wire, or to the VM with index dst.
func from(index uint32, dst [6]byte, n int) pt.TCP {
	p := to(0, n)
	p.SrcMAC, p.DstMAC = macOf(index), dst
	return p
}

var wire = [6]byte{2, 0, 0, 0, 9, 9}

// onWire compares what was sent.
func (r *rig) onWire(want ...[]byte) {
	r.tb.Helper()
	got := r.nic.sent()
	if len(got) != len(want) {
		r.tb.Fatalf("%d frames on the wire, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			r.tb.Fatalf("frame %d on the wire:\n got %x\nwant %x", i, head(got[i]), head(want[i]))
		}
	}
}

func (r *rig) txDropped(index uint32, want byReason) {
	r.tb.Helper()
	compareReasons(r.tb, "sent and dropped", &r.w.ports[index].cnt.TxDropped, want)
}

func TestWhatAGuestSendsGoesToTheWireAsItIs(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	want := train(from(1, wire, 700), 5)
	s.send(noHdr, want...)
	if !r.step() {
		t.Error("a step that sent frames says there was nothing to do")
	}
	r.onWire(want...)
	c := &r.w.ports[1].cnt
	if c.TxFrames != 5 || c.TxBytes != uint64(5*len(want[0])) || c.TxWire != 5 || r.w.cnt.TxFrames != 5 || r.w.cnt.TxRingFull != 0 || c.Local != 0 {
		t.Errorf("port %+v, queue %+v", *c, r.w.cnt)
	}
	if s.budget != txBudget {
		t.Errorf("budget %d", s.budget)
	}
}

func TestAPartialChecksumIsCompletedForTheWire(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	p := from(1, wire, 700)
	p.Partial = true
	s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 34, CsumOffset: 16}, p.Frame())
	p.Partial = false
	s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: 2000, CsumOffset: 16}, p.Frame()) // a lie
	r.step()
	r.onWire(p.Frame())
	r.txDropped(1, byReason{flowtable.ReasonMalformed: 1})
}

// A TSO frame is cut by its header into what a NIC would have sent.
func TestAGuestsTSOFrameIsCut(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRig(t)
		_, s := r.sender(1)
		kind := uint8(virtio.GSOTCPv4)
		p := from(1, wire, 5000)
		p.V6 = v6
		if v6 {
			kind = virtio.GSOTCPv6
		}
		p.Flags = pt.ACK | pt.PSH
		frame := p.Frame()
		hdr := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: kind, GSOSize: 1400, CsumStart: 34, CsumOffset: 16}
		s.send(hdr, frame)
		r.step()
		pieces := from(1, wire, 1400)
		pieces.V6 = v6
		want := pieces.Train(4)
		want[3].Len, want[3].Flags = 800, pt.ACK|pt.PSH
		r.onWire(pt.Frames(want...)...)
		if c := r.w.ports[1].cnt; c.TxFrames != 1 || c.TxBytes != uint64(len(frame)) || c.TxWire != 4 {
			t.Errorf("port %+v", c)
		}
		r.txDropped(1, nil)
	}
}

func TestAFrameThatMayNotLeaveIsDroppedForItsReason(t *testing.T) {
	tso := func(size uint16) virtio.NetHdr {
		return virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: size}
	}
	ok := from(1, wire, 1000)
	for name, c := range map[string]struct {
		hdr   virtio.NetHdr
		frame []byte
		why   flowtable.Reason
		taken uint64
	}{
		"foreign source":        {noHdr, from(2, wire, 100).Frame(), flowtable.ReasonSourceMAC, 0},
		"a tag":                 {noHdr, ok.With(func(p *pt.TCP) { p.Tags = []uint16{5} }).Frame(), flowtable.ReasonVLANForeign, 0},
		"a provider's tag":      {noHdr, ok.With(func(p *pt.TCP) { p.Tags, p.TPID = []uint16{5}, 0x88a8 }).Frame(), flowtable.ReasonVLANForeign, 0},
		"no whole header":       {noHdr, ok.Frame()[:13], flowtable.ReasonBadLength, 0},
		"longer than the MTU":   {noHdr, ok.With(func(p *pt.TCP) { p.Len = 1449 }).Frame(), flowtable.ReasonBadLength, 1},
		"more than a chunk has": {noHdr, ok.With(func(p *pt.TCP) { p.Len = 3000 }).Frame(), flowtable.ReasonBadLength, 1},
		"TSO of something else": {tso(1000), pt.UDP{SrcMAC: macOf(1), DstMAC: wire, Len: 3000}.Frame(), flowtable.ReasonMalformed, 0},
		"TSO without a size":    {tso(0), ok.Frame(), flowtable.ReasonMalformed, 0},
		"TSO of many packets":   {tso(4), ok.With(func(p *pt.TCP) { p.Len = 1025 }).Frame(), flowtable.ReasonBadLength, 0},
		"TSO beyond the MTU":    {tso(1449), ok.With(func(p *pt.TCP) { p.Len = 3000 }).Frame(), flowtable.ReasonBadLength, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			_, s := r.sender(1)
			s.send(c.hdr, c.frame)
			last := ok.With(func(p *pt.TCP) { p.Len = 1448 }).Frame()
			s.send(noHdr, last) // the longest that may leave
			r.step()
			r.onWire(last)
			r.txDropped(1, byReason{c.why: 1})
			if cnt := r.w.ports[1].cnt; cnt.TxFrames != 1+c.taken || cnt.TxWire != 1 {
				t.Errorf("port %+v", cnt)
			}
			if r.nic.with(inWorker) != 0 {
				t.Errorf("%d chunks out", r.nic.with(inWorker))
			}
		})
	}
}

// As many packets as the bound allows are cut.
func TestATSOFrameOfAsManyPacketsAsMayBe(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 2048 })
	r.nic.txSize = 300
	r.nic.keep(300)
	_, s := r.sender(1)
	s.send(virtio.NetHdr{GSOType: virtio.GSOTCPv4, GSOSize: 4}, from(1, wire, 4*maxTxPackets).Frame())
	r.step()
	if n := len(r.nic.sent()); n != maxTxPackets {
		t.Errorf("%d packets", n)
	}
}

func TestAVMThatMaySpoofDoes(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1, func(c *PortConfig) { c.AllowSpoof = true })
	f := from(2, wire, 100).Frame()
	s.send(noHdr, f)
	r.step()
	r.onWire(f)
	r.txDropped(1, nil)
}

func TestAnAccessPortsFramesLeaveWithItsTag(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
	p := from(1, wire, 1448)
	s.send(noHdr, p.Frame())
	tagged := p
	tagged.Tags = []uint16{5}
	r.step()
	r.onWire(tagged.Frame())
	// A TSO frame's packets too, of the full MTU.
	s.send(virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: 1448}, p.With(func(p *pt.TCP) { p.Len = 2896 }).Frame())
	r.step()
	r.onWire(train(tagged, 2)...)
}

func TestVMsBesideEachOtherSpeakDirectly(t *testing.T) {
	r := newRig(t)
	a, sa := r.sender(1)
	b, sb := r.sender(2)
	v, sv := r.sender(3, func(c *PortConfig) { c.Addr.VLAN = 5 })
	bridged := r.vm(4, func(c *PortConfig) { c.Bridged = true })
	there, back := train(from(1, macOf(2), 1000), 4), from(2, macOf(1), 50).Frame()
	sa.send(noHdr, there...)
	sb.send(noHdr, back)
	away := from(3, macOf(2), 60).Frame() // another VLAN's: to the wire
	sv.send(noHdr, away)
	behind := from(1, macOf(4), 70).Frame() // its bridge brings the answer, so it gets the question
	sa.send(noHdr, behind)
	r.step()
	r.step() // a superframe between VMs leaves at the end of the next burst
	packets(t, b.got, there...)
	if len(b.got) != 1 {
		t.Errorf("%d frames: a train between VMs merges", len(b.got))
	}
	packets(t, a.got, back)
	if len(v.got)+len(bridged.got) != 0 {
		t.Errorf("%d frames crossed VLANs, %d went past the bridge", len(v.got), len(bridged.got))
	}
	tagged := from(3, macOf(2), 60)
	tagged.Tags = []uint16{5}
	r.onWire(behind, tagged.Frame())
	if c := r.w.ports[2].cnt; c.Local != 4 || r.ledger(2).In != 4 || r.w.ports[1].cnt.TxWire != 5 || r.w.cnt.TxFrames != 2 {
		t.Errorf("port 2 %+v, queue %+v", c, r.w.cnt)
	}
}

// What one VM sends to one beside it reaches the guest in the same step, when nothing holds it.
func TestAFrameBetweenVMsNeedsNoOtherTraffic(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	b := r.vm(2)
	f := pt.UDP{SrcMAC: macOf(1), DstMAC: macOf(2), Len: 50}.Frame()
	s.send(noHdr, f)
	r.step()
	packets(t, b.got, f)
}

func TestAGroupFrameOfAVMGoesToItsNeighboursAndTheWire(t *testing.T) {
	r := newRig(t)
	a, s := r.sender(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
	near := r.vm(2, func(c *PortConfig) { c.Addr.VLAN = 5 })
	other := r.vm(3)
	f := pt.UDP{SrcMAC: macOf(1), DstMAC: [6]byte{0x01, 0, 0x5e, 1, 2, 3}, Len: 50}
	s.send(noHdr, f.Frame())
	r.step()
	packets(t, near.got, f.Frame())
	if len(a.got)+len(other.got) != 0 {
		t.Errorf("the sender got %d, another VLAN %d", len(a.got), len(other.got))
	}
	f.Tags = []uint16{5}
	r.onWire(f.Frame())
}

// What the kernel has taken and not completed is no reason to wake up, unless somebody waits for its chunks or its place.
func TestFramesOnTheirWayAreSleptOver(t *testing.T) {
	r := newRig(t)
	r.nic.txSize, r.nic.busy = 3, true
	_, s := r.sender(1)
	for _, c := range []struct {
		frames int
		onWay  bool
		want   time.Duration
	}{{2, false, txRetry}, {0, true, -1}, {3, true, txRetry}} {
		r.nic.onWay = c.onWay
		s.send(noHdr, train(from(1, wire, 700), c.frames)...)
		r.step()
		if d := r.w.timeout(); d != c.want {
			t.Errorf("%d more frames, on their way %t: sleeps %v, want %v", c.frames, c.onWay, d, c.want)
		}
	}
}

// A full TX ring slows the guest down; it loses nothing.
func TestAFullTXRingLeavesFramesInTheVirtqueue(t *testing.T) {
	r := newRig(t)
	r.nic.txSize, r.nic.busy = 3, true
	_, s := r.sender(1)
	want := train(from(1, wire, 700), 8)
	s.send(noHdr, want...)
	r.step()
	if len(s.queue) != 5 || !r.w.txStalled || r.w.ports[1].cnt.TxFrames != 3 {
		t.Fatalf("%d frames stay, stalled %v", len(s.queue), r.w.txStalled)
	}
	if r.step() {
		t.Error("a step that could not send says that it did something")
	}
	if d := r.w.timeout(); d != txRetry {
		t.Errorf("sleeps %v", d)
	}
	r.nic.busy = false
	for range 4 {
		r.step()
	}
	r.onWire(want...)
	if r.w.txStalled {
		t.Error("stalled, and nothing waits for room")
	}
	if r.w.cnt.TxRingFull != 0 {
		t.Errorf("%d frames given up", r.w.cnt.TxRingFull)
	}
	// A TSO frame leaves whole or not at all.
	s.send(virtio.NetHdr{GSOType: virtio.GSOTCPv4, GSOSize: 1000}, from(1, wire, 4000).Frame())
	r.step()
	if len(s.queue) != 1 || len(r.nic.sent()) != 0 {
		t.Errorf("part of a TSO frame left, %d stay", len(s.queue))
	}
	r.nic.txSize = 4
	r.step()
	if n := len(r.nic.sent()); n != 4 || len(s.queue) != 0 {
		t.Errorf("%d packets, %d frames stay", n, len(s.queue))
	}
}

// Room that was there and is gone is counted, and gives the chunks back.
func TestAFrameWithoutRoomAfterAllIsCounted(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	for i := range uint32(6) {
		r.vm(10 + i)
	}
	// The copies of a group frame do not take the chunks of its wire packets: neighbours go without.
	r.nic.reserve = 0
	keep := r.nic.pool[:7]
	r.nic.fill = append(r.nic.fill, r.nic.pool[7:]...)
	for _, a := range r.nic.pool[7:] {
		r.nic.moves(a, inPool, inFill)
	}
	r.nic.pool = keep
	p := from(1, [6]byte{0x01, 0, 0x5e, 1, 2, 3}, 3000)
	s.send(virtio.NetHdr{GSOType: virtio.GSOTCPv4, GSOSize: 1000}, p.Frame())
	r.w.transmit()
	r.check()
	refused := r.w.ports[1].cnt.TxDropped[flowtable.ReasonGroupShare] // the sender's loss
	for i := range uint32(6) {
		r.dropped(10+i, nil)
	}
	if n := r.w.cnt.TxFrames; n != 3 || r.w.cnt.TxRingFull != 0 || refused == 0 {
		t.Errorf("%d packets of 3 left, %d given up, %d copies refused", n, r.w.cnt.TxRingFull, refused)
	}
	r.nic.reserve = 64
	r.step()
	// And a Send that refuses.
	before := r.w.cnt.TxRingFull
	buf, d, ok := r.nic.AllocTx()
	if !ok {
		t.Fatal("no chunk")
	}
	f := from(1, wire, 100).Frame()
	r.nic.txSize = 0
	r.w.route(r.w.ports[1], &outgoing{}, buf, copy(buf, f), d)
	if r.w.cnt.TxRingFull != before+1 || r.nic.with(inWorker) != 0 {
		t.Errorf("%d given up, %d chunks out", r.w.cnt.TxRingFull-before, r.nic.with(inWorker))
	}
	// And no chunk where there was one.
	r.nic.txSize = 8
	for {
		if _, _, ok := r.nic.AllocTx(); !ok {
			break
		}
	}
	r.w.emitOne(r.w.ports[1], &outgoing{data: f})
	if r.w.cnt.TxRingFull != before+2 {
		t.Errorf("%d given up", r.w.cnt.TxRingFull-before)
	}
}

// A guest's frame is in the TX ring, where the kernel sees it whatever becomes of this process, before the guest is told that it
// was taken.
func TestTheKernelSeesAFrameBeforeTheGuestHasItBack(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	looked := 0
	s.used = func() {
		r.nic.mu.Lock()
		defer r.nic.mu.Unlock()
		if looked++; r.nic.shown != len(r.nic.tx) || len(r.nic.tx) == 0 {
			t.Errorf("completed with %d of %d frames shown", r.nic.shown, len(r.nic.tx))
		}
	}
	f := from(1, wire, 100).Frame()
	s.send(noHdr, f, f, f)
	r.step()
	r.onWire(f, f, f)
	if looked == 0 {
		t.Error("nothing was completed")
	}
}

// A source that has failed does not keep the others from sending.
func TestAFailedSourceLeavesTheOthersAlone(t *testing.T) {
	r := newRig(t)
	_, bad := r.sender(1)
	_, good := r.sender(2)
	bad.err = errors.New("fake source: failed")
	f := from(2, wire, 100).Frame()
	good.send(noHdr, f)
	r.step()
	r.onWire(f)
	bad.send(noHdr, from(1, wire, 100).Frame())
	r.step()
	if n := len(r.nic.sent()); n != 1 {
		t.Errorf("%d frames that a source gave before it failed", n)
	}
}

// A link that is down makes the worker sleep, not spin; when it is up, what waited goes.
func TestABrokenNICIsNotRetriedAtOnce(t *testing.T) {
	r := newRig(t)
	_, s := r.sender(1)
	r.nic.down = true
	f := from(1, wire, 100).Frame()
	s.send(noHdr, f)
	r.step()
	if !r.w.nicBroken {
		t.Fatal("nobody noticed")
	}
	if d := r.w.timeout(); d != errorBackoff {
		t.Errorf("sleeps %v while the link is down, want %v", d, errorBackoff)
	}
	r.nic.down = false
	r.step()
	r.onWire(f)
}

func TestStoppingAPortEndsItsSources(t *testing.T) {
	r := newRig(t)
	_, sa := r.sender(1)
	_, sb := r.sender(2)
	r.w.stopPort(1)
	sa.send(noHdr, from(1, wire, 100).Frame())
	f := from(2, wire, 100).Frame()
	sb.send(noHdr, f)
	r.step()
	r.onWire(f)
	if len(sa.queue) != 1 || len(r.w.egress) != 1 {
		t.Errorf("%d frames stay, %d sources", len(sa.queue), len(r.w.egress))
	}
}
