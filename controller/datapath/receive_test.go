package datapath

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

func TestMetadataIsBelievedInsteadOfTheAddress(t *testing.T) {
	r := newRig(t)
	a, b := r.vm(1), r.vm(2)
	want := train(to(1, 1000), 4)
	for _, f := range want {
		r.nic.inject(f, metaOf(2, f)) // whatever its address: XDP decides
	}
	r.step()
	if len(a.got) != 0 || r.w.cnt.WithMeta != 4 || r.w.cnt.RxFrames != 4 {
		t.Errorf("%d frames by address, %d with metadata", len(a.got), r.w.cnt.WithMeta)
	}
	packets(t, b.got, want...)
	if len(b.got) != 1 {
		t.Errorf("%d frames: what XDP found out was lost", len(b.got))
	}
}

// The frame's address decides when its metadata cannot be of it, or is for a VM that nobody knows.
func TestMetadataThatCannotBeRightIsNot(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	f := to(1, 100).Frame()
	other := to(1, 99).Frame()
	r.nic.inject(f, metaOf(2, other))       // another frame's length
	r.nic.inject(f, metaOf(MaxPorts, f))    // no such port
	r.nic.inject(f, metaOf(MaxPorts-1, f))  // a port that is not there
	r.nic.inject(f, make([]byte, 32))       // none
	r.nic.inject(f[:40], metaOf(1, f[:40])) // a cut frame with metadata
	r.nic.inject(f[:13], nil)               // less than a header
	r.nic.inject(to(250, 100).Frame(), nil) // nobody's
	r.step()
	if len(g.got) != 5 || r.w.cnt.Unknown != 2 || r.w.cnt.WithMeta != 1 || r.w.cnt.RxFrames != 7 {
		t.Errorf("%d delivered, %+v", len(g.got), r.w.cnt)
	}
	if r.nic.with(inWorker) != 0 {
		t.Errorf("%d chunks did not come back", r.nic.with(inWorker))
	}
}

// Tagged frames of an access port reach the guest untagged and merge; a foreign tag stays.
func TestAnAccessPortsTagIsTakenOff(t *testing.T) {
	for _, meta := range []bool{false, true} {
		r := newRig(t)
		g := r.vm(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
		untagged := r.vm(2, func(c *PortConfig) { c.Addr = Addr{MAC: macOf(1)} })
		want := train(to(1, 1000), 4)
		tagged := to(1, 1000)
		tagged.Tags = []uint16{3<<13 | 5}
		for _, f := range train(tagged, 4) {
			var m []byte
			if meta {
				m = metaOf(1, f)
			}
			r.nic.inject(f, m)
		}
		plain := to(1, 500).Frame()
		r.inject(plain)
		foreign := to(1, 400)
		foreign.Tags = []uint16{6}
		r.inject(foreign.Frame())
		r.step()
		packets(t, g.got, want...)
		if len(g.got) != 1 || g.got[0].hdr.GSOType == 0 {
			t.Errorf("metadata %v: %d frames", meta, len(g.got))
		}
		packets(t, untagged.got, plain)
		if r.w.cnt.Unknown != 1 {
			t.Errorf("%d frames of a foreign VLAN were dropped", r.w.cnt.Unknown)
		}
		if l := r.ledger(1); l.InBytes != uint64(4*len(want[0])) {
			t.Errorf("%d bytes came in", l.InBytes)
		}
	}
}

// What XDP sent to a port with a tag that is not the port's stays as it is.
func TestAForeignTagIsNotTakenOff(t *testing.T) {
	r := newRig(t)
	g := r.vm(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
	p := to(1, 400)
	p.Tags = []uint16{6}
	f := p.Frame()
	r.nic.inject(f, metaOf(1, f))
	r.step()
	packets(t, g.got, f)
}

// A tagged frame, of whatever kind, keeps what stands behind its tag.
func TestTakingATagOffMovesNothingElse(t *testing.T) {
	arp, mac := pt.ARP(), macOf(1)
	for name, p := range map[string][]byte{
		"IPv6": to(1, 900).With(func(p *pt.TCP) { p.V6, p.Tags = true, []uint16{5} }).Frame(),
		"UDP":  pt.UDP{DstMAC: macOf(1), Tags: []uint16{5}, Len: 77}.Frame(),
		"ARP":  slices.Concat(mac[:], arp[6:12], []byte{0x81, 0, 0, 5}, arp[12:]),
		"PSH":  to(1, 900).With(func(p *pt.TCP) { p.Tags, p.Flags = []uint16{5}, pt.ACK|pt.PSH }).Frame(),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			g := r.vm(1, func(c *PortConfig) { c.Addr.VLAN = 5 })
			want := append(append([]byte{}, p[:12]...), p[16:]...)
			r.inject(p)
			r.nic.inject(p, metaOf(1, p))
			r.step()
			packets(t, g.got, want, want)
		})
	}
}

func TestGroupFramesReachEveryVMOfTheirVLAN(t *testing.T) {
	group := &fakeMulticast{fd: -1}
	r := newRig(t, func(c *Config) { c.Multicast = group })
	plain, second, tagged := r.vm(1), r.vm(2), r.vm(3, func(c *PortConfig) { c.Addr.VLAN = 5 })
	bridged := r.vm(4, func(c *PortConfig) { c.Bridged = true })
	r.addPort(PortConfig{Index: 5, Addr: Addr{MAC: macOf(5)}}) // does not run
	arp := pt.ARP()
	a, b := append([]byte{}, arp...), append([]byte{}, arp...)
	a[59], b[59] = 1, 2
	group.queue = []groupFrame{{frame: a}, {frame: b, tci: 2<<13 | 5, tagged: true}, {frame: arp, tci: 6, tagged: true}}
	r.now.Store(int64(time.Second))
	r.w.receiveGroup()
	r.step()
	packets(t, plain.got, a)
	packets(t, second.got, a)
	packets(t, tagged.got, b)
	if len(bridged.got) != 0 || r.ledger(5).Refused != 0 || r.w.now != int64(time.Second) {
		t.Errorf("%d frames for a VM behind a bridge, %d for one that does not run", len(bridged.got), r.ledger(5).Refused)
	}
	if l := r.ledger(1); l.In != 1 || l.Passed[flowtable.ReasonNotIP] != 1 {
		t.Errorf("ledger: %+v", *l)
	}
}

func TestGroupFramesHaveABudget(t *testing.T) {
	group := &fakeMulticast{fd: -1}
	r := newRig(t, func(c *Config) { c.Multicast = group })
	g := r.vm(1)
	for range groupBudget + 5 {
		group.queue = append(group.queue, groupFrame{frame: pt.ARP()})
	}
	r.w.receiveGroup()
	r.step()
	if len(g.got) != groupBudget {
		t.Errorf("%d frames at once", len(g.got))
	}
}

func TestAGroupFrameForWhichThereIsNoChunkIsCounted(t *testing.T) {
	group := &fakeMulticast{fd: -1}
	r := newRig(t, func(c *Config) { c.Multicast = group })
	g := r.vm(1)
	r.vm(2)
	r.nic.pool, r.nic.fill = r.nic.pool[:1], append(r.nic.fill, r.nic.pool[1:]...)
	for _, a := range r.nic.fill {
		r.nic.hands[a/fakeChunk] = inFill
	}
	g.keeps, g.keepMost = true, 1
	long := make([]byte, fakeChunk)
	group.queue = []groupFrame{{frame: pt.ARP()}}
	r.w.receiveGroup()
	r.w.flush()
	r.check()
	packets(t, g.got, pt.ARP())
	r.dropped(2, byReason{flowtable.ReasonGuestNoBuffers: 1})
	g.keepMost = 0
	r.w.reap()
	group.queue = []groupFrame{{frame: long}}
	r.w.receiveGroup()
	r.w.flush()
	r.check()
	r.dropped(1, byReason{flowtable.ReasonBadLength: 1})
	if l := r.ledger(1); l.Refused != 1 || l.RefusedBytes != fakeChunk || r.nic.with(inWorker) != 0 {
		t.Errorf("ledger %+v, %d chunks out", *l, r.nic.with(inWorker))
	}
}

// A superframe waits for as long as the rules say, whatever else comes.
func TestASuperframeLeavesAtItsDeadline(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	if err := r.w.table.SetPort(1, rules(func(c *flowtable.PortConfig) { c.Hold = 50 * time.Microsecond }), 0); err != nil {
		t.Fatal(err)
	}
	want := train(to(1, 1000), 4)
	for _, f := range want {
		r.inject(f)
		r.step()
		r.advance(10 * time.Microsecond)
	}
	if len(g.got) != 0 || r.w.timeout() != 10*time.Microsecond {
		t.Fatalf("%d frames, sleeps %v", len(g.got), r.w.timeout())
	}
	r.advance(10 * time.Microsecond)
	r.step()
	packets(t, g.got, want...)
	if l := r.ledger(1); l.Sealed[flowtable.ReasonDeadline] != 1 || l.HoldHist != [len(flowtable.HoldBounds) + 1]uint64{5: 1} {
		t.Errorf("ledger: %+v", *l)
	}
	if d := r.w.timeout(); d >= 0 {
		t.Errorf("sleeps %v with nothing to wait for", d)
	}
}

func TestDrainDeliversWhatTheNICHadReceived(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 2 * MaxRing })
	g := r.vm(1)
	p := to(1, 60)
	p.Flags = pt.ACK | pt.PSH
	want := train(p, MaxRing+200)
	r.inject(want...)
	r.now.Store(77)
	r.w.drain()
	r.check()
	packets(t, g.take(), want[:MaxRing]...) // an RX ring, and no more
	if r.w.now != 77 || len(r.nic.fill) < 2*MaxRing-296 {
		t.Errorf("at %d, %d chunks to receive into", r.w.now, len(r.nic.fill))
	}
	r.w.drain()
	r.check()
	packets(t, g.take(), want[MaxRing:]...)
}

// The table may hold a quarter of the UMEM; what is older leaves first.
func TestTheTableHoldsAQuarterOfTheUMEMAtMost(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Chunks = 256 })
	g := r.vm(1)
	if err := r.w.table.SetPort(1, rules(func(c *flowtable.PortConfig) { c.Hold = time.Hour }), 0); err != nil {
		t.Fatal(err)
	}
	for i := range 80 {
		r.inject(to(1, 100).With(func(p *pt.TCP) { p.SrcPort = 2000 + uint16(i%20); p.Seq = uint32(i/20) * 100; p.ID = uint16(i / 20) }).Frame())
		r.step()
	}
	if r.w.table.Held() > 64 || r.ledger(1).Sealed[flowtable.ReasonPressure] == 0 || len(g.got) == 0 {
		t.Errorf("%d chunks held", r.w.table.Held())
	}
}

func TestAGoodChecksumIsTold(t *testing.T) {
	r := newRig(t)
	g := r.vm(1)
	good := to(1, 100)
	good.Flags = pt.ACK | pt.PSH
	bad := good
	bad.BadTCP, bad.SrcPort = true, 99
	r.inject(good.Frame(), bad.Frame())
	r.step()
	if len(g.got) != 2 || g.got[0].hdr.Flags != virtio.HdrDataValid || g.got[1].hdr.Flags != 0 || !bytes.Equal(g.got[1].data, bad.Frame()) {
		t.Errorf("%d frames", len(g.got))
	}
}

// What is known of a tagged frame holds for the frame without its tag: nobody has to look at it again.
func TestWhatIsKnownOfAFrameSurvivesItsTag(t *testing.T) {
	for name, p := range map[string]pt.TCP{
		"IPv4": {Len: 100}, "IPv6": {V6: true, Len: 100}, "options": {Len: 100, Opts: pt.Timestamps(1, 2)}, "a second tag": {Len: 100, Tags: []uint16{7}},
		"a fragment": {Len: 100, MF: true}, "no payload": {},
	} {
		tagged := p
		tagged.Tags = append([]uint16{5}, p.Tags...)
		f := tagged.Frame()
		in := parse(f)
		if in.Verdict == packet.VLANStack {
			continue // nothing behind the tags is known
		}
		got := packet.StripTag(f, &in)
		if want := p.Frame(); !bytes.Equal(got, want) {
			t.Errorf("%s: the frame differs", name)
		}
		if want := parse(got); in != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, in, want)
		}
	}
}

// A VM for which some TCP port is excluded has every frame go the long way. Whatever byte of a segment's metadata or headers differs, in the middle of a
// train, a VM that excludes none gets the same frames, has the same account, and the same senders are noted.
func TestTheShortWayFromMetadataOnChangesNothing(t *testing.T) {
	run := func(exclude []uint16, frames, metas [][]byte) ([]received, flowtable.Ledger, QueueCounters, senderSet) {
		r := newRig(t)
		r.addPort(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}, NoteSenders: true, MTU: 1400})
		g := r.start(1, rules(func(c *flowtable.PortConfig) { c.ExcludePorts = exclude }))
		for i, f := range frames {
			r.nic.inject(f, metas[i])
		}
		r.step()
		return g.got, *r.ledger(1), r.w.cnt, *r.w.ports[1].senders
	}
	frames := train(to(1, 300), 7)
	var metas [][]byte
	for _, f := range frames {
		metas = append(metas, metaOf(1, f))
	}
	same := func(what string, at int) {
		t.Helper()
		short, a, x, heard := run(nil, frames, metas)
		long, b, y, known := run([]uint16{9}, frames, metas)
		if !slices.EqualFunc(short, long, func(s, l received) bool { return s.hdr == l.hdr && bytes.Equal(s.data, l.data) }) || a != b || x != y || heard != known {
			t.Fatalf("%s, byte %d: the short way gives %d frames, %+v, %+v\nthe long one %d, %+v, %+v", what, at, len(short), a, x, len(long), b, y)
		}
	}
	same("as they came", 0)
	const middle = 4
	for at := range metas[middle] {
		was := metas[middle][at]
		for _, flip := range []byte{1, 2, 4, 8, 16, 32, 64, 128, 255} {
			metas[middle][at] = was ^ flip
			same("metadata", at)
		}
		metas[middle][at] = was
	}
	for at := range 70 {
		was := frames[middle][at]
		for _, flip := range []byte{1, 8, 16, 128} {
			frames[middle][at] = was ^ flip
			same("frame under old metadata", at)
			metas[middle] = metaOf(1, frames[middle])
			same("frame", at)
		}
		frames[middle][at] = was
		metas[middle] = metaOf(1, frames[middle])
	}
}
