package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// neighbours are a VM that sends, 1, and one beside it, 2, with what its guest gets. head is how much of a frame is private, 0: all.
func (r *rig) neighbours(head int, c flowtable.PortConfig, edits ...func(*PortConfig)) (*fakeSource, *fakeGuest) {
	r.tb.Helper()
	_, s := r.sender(1, edits...)
	s.head = head
	r.vm(2, edits...)
	return s, r.start(2, c)
}

// tsoTo is a TSO frame of VM 1 to VM 2, and the header that its driver puts in front.
func tsoTo(v6 bool, payload, size int, edits ...func(*pt.TCP)) (virtio.NetHdr, []byte) {
	p := from(1, macOf(2), payload)
	p.V6, p.Partial = v6, true
	for _, e := range edits {
		e(&p)
	}
	h := kernelCuts(virtio.GSOTCPv4, uint16(size))
	if v6 {
		h.GSOType, h.CsumStart = virtio.GSOTCPv6, 54
	}
	if p.Flags&pt.CWR != 0 {
		h.GSOType |= virtio.GSOECN
	}
	return h, p.Frame()
}

// cutBy are the packets that a TSO frame stands for.
func cutBy(tb testing.TB, h virtio.NetHdr, frame []byte) [][]byte {
	tb.Helper()
	cut, err := cutAgain(&received{hdr: h, data: frame}, false)
	if err != nil {
		tb.Fatal(err)
	}
	return cut
}

// A VM beside the sender gets a TSO frame as the one superframe that it is, of either family and any size, with a header that the standard
// allows for its features, and the packets are those that cutting gives.
func TestANeighbourGetsATSOFrameWhole(t *testing.T) {
	features := allFeatures &^ (1 << virtio.FRSCExt)
	for _, head := range []int{0, HeadRoom} {
		for _, v6 := range []bool{false, true} {
			for _, size := range []int{1448, 1447, 999, 536, 257} {
				for _, payload := range []int{size + 1, 2*size - 1, 2 * size, 9999, 65160 - 20} {
					if payload <= size || payload > maxTxPackets*size {
						continue
					}
					for _, vlan := range []uint16{0, 5} {
						r := newRig(t)
						s, g := r.neighbours(head, rules(), func(c *PortConfig) { c.Addr.VLAN = vlan })
						h, frame := tsoTo(v6, payload, min(size, 1428))
						want := cutBy(t, h, frame)
						lie := h
						lie.HdrLen, lie.CsumStart = 9, 77 // the sender's own words for it
						lie.CsumOffset = 3
						s.send(lie, frame)
						r.step()
						got := g.take()
						if len(got) != 1 {
							t.Fatalf("%d frames", len(got))
						}
						if got[0].hdr.NumBuffers = 1; virtio.CheckRx(&got[0].hdr, got[0].data, features) != nil {
							t.Fatalf("%+v: %v", got[0].hdr, virtio.CheckRx(&got[0].hdr, got[0].data, features))
						}
						packets(t, got, want...)
						n := uint64(len(want))
						p, q, l := &r.w.ports[1].cnt, &r.w.ports[2].cnt, r.ledger(2)
						if p.TxFrames != 1 || p.TxWhole != 1 || p.TxBytes != uint64(len(frame)) || p.TxWire != n || q.Local != n {
							t.Fatalf("sender %+v, receiver %+v", *p, *q)
						}
						if l.In != n || l.Merged != n || l.Superframes != 1 || l.Sealed[flowtable.ReasonGSOInput] != 1 || l.FrameBytes != uint64(len(frame)) ||
							l.InBytes != uint64(len(bytes.Join(want, nil))) || l.Decided.Bytes != l.InBytes || q.FrameSizes[sizeBucket(len(frame))] != 1 {
							t.Fatalf("%d packets, %+v, %+v", n, *l, q.FrameSizes)
						}
						if len(r.nic.sent()) != 0 {
							t.Fatal("it went to the wire, too")
						}
					}
				}
			}
		}
	}
}

// A frame whose IP length or sums its driver left to the device, or that has a priority tag, arrives with what belongs there, and untagged.
func TestANeighbourGetsWhatADeviceWouldHaveWritten(t *testing.T) {
	for name, edit := range map[string]func(*pt.TCP){
		"IP length 0":      func(p *pt.TCP) { p.ZeroIPLength = true },
		"a wrong IP sum":   func(p *pt.TCP) { p.BadIP = true },
		"a priority tag":   func(p *pt.TCP) { p.Tags = []uint16{0x6000} },
		"40 bytes options": func(p *pt.TCP) { p.Opts = make([]byte, 40) },
		"no options":       func(p *pt.TCP) { p.Opts = nil },
		"PSH and FIN":      func(p *pt.TCP) { p.Flags = pt.ACK | pt.PSH | pt.FIN },
	} {
		for _, head := range []int{0, HeadRoom} {
			r := newRig(t)
			s, g := r.neighbours(head, rules())
			h, frame := tsoTo(false, 5000, 1000, edit)
			clean := func(p *pt.TCP) {
				edit(p)
				p.ZeroIPLength, p.BadIP, p.Tags = false, false, nil
			}
			_, want := tsoTo(false, 5000, 1000, clean)
			s.send(h, frame)
			r.step()
			got := g.take()
			if len(got) != 1 || !bytes.Equal(got[0].data, want) {
				t.Fatalf("%s: %d frames, or other bytes", name, len(got))
			}
			if got[0].hdr.NumBuffers = 1; virtio.CheckRx(&got[0].hdr, got[0].data, allFeatures&^(1<<virtio.FRSCExt)) != nil {
				t.Errorf("%s: %+v", name, got[0].hdr)
			}
		}
	}
}

// Whom features, policy or buffers keep from superframes gets the packets, byte by byte what cutting gives.
func TestANeighbourThatTakesNoSuperframeGetsThePackets(t *testing.T) {
	edit := func(e func(*flowtable.PortConfig)) flowtable.PortConfig { return rules(e) }
	cwr := func(p *pt.TCP) { p.Flags = pt.ACK | pt.CWR }
	for name, c := range map[string]struct {
		rules flowtable.PortConfig
		v6    bool
		frame func(*pt.TCP)
		guest func(*fakeGuest)
		whole bool
	}{
		"it takes them":          {rules(), false, nil, nil, true},
		"no TSO4":                {edit(func(c *flowtable.PortConfig) { c.TSO4 = false }), false, nil, nil, false},
		"no TSO4, and it is v6":  {edit(func(c *flowtable.PortConfig) { c.TSO4 = false }), true, nil, nil, true},
		"no TSO6":                {edit(func(c *flowtable.PortConfig) { c.TSO6 = false }), true, nil, nil, false},
		"no checksums":           {edit(func(c *flowtable.PortConfig) { c.GuestCsum = false }), false, nil, nil, false},
		"coalescing is off":      {edit(func(c *flowtable.PortConfig) { c.Coalesce = false }), false, nil, nil, false},
		"the family is off":      {edit(func(c *flowtable.PortConfig) { c.IPv6 = false }), true, nil, nil, false},
		"the port is excluded":   {edit(func(c *flowtable.PortConfig) { c.ExcludePorts = []uint16{443} }), false, func(p *pt.TCP) { p.DstPort = 443 }, nil, false},
		"longer than max-bytes":  {edit(func(c *flowtable.PortConfig) { c.MaxBytes = 5051 }), false, nil, nil, false},
		"as long as max-bytes":   {edit(func(c *flowtable.PortConfig) { c.MaxBytes = 5052 }), false, nil, nil, true},
		"more than max-segments": {edit(func(c *flowtable.PortConfig) { c.MaxSegments = 4 }), false, nil, nil, false},
		"Windows' rules":         {edit(func(c *flowtable.PortConfig) { c.Profile, c.RSCExt = flowtable.RSC, true }), false, nil, nil, false},
		"RSC_EXT, lossless":      {edit(func(c *flowtable.PortConfig) { c.RSCExt = true }), false, nil, nil, true},
		"CWR without GUEST_ECN":  {rules(), false, cwr, nil, false},
		"CWR with GUEST_ECN":     {edit(func(c *flowtable.PortConfig) { c.ECN = true }), false, cwr, nil, true},
		"SYN":                    {rules(), false, func(p *pt.TCP) { p.Flags = pt.SYN | pt.ACK }, nil, false},
		"URG":                    {rules(), false, func(p *pt.TCP) { p.Flags |= pt.URG }, nil, false},
		"IP options":             {rules(), false, func(p *pt.TCP) { p.IPOpts = []byte{1, 1, 1, 1} }, nil, false},
		"an extension header":    {rules(), true, func(p *pt.TCP) { p.Ext = []pt.Ext{pt.DstOpts(1)} }, nil, false},
		"small buffers":          {rules(), false, nil, func(g *fakeGuest) { g.longest = 4000 }, false},
		"features that changed":  {rules(), false, nil, func(g *fakeGuest) { g.noOffer = func(h *virtio.NetHdr) bool { return h.GSOType != 0 } }, false},
	} {
		for _, head := range []int{0, HeadRoom} {
			t.Run(fmt.Sprintf("%s/head %d", name, head), func(t *testing.T) {
				r := newRig(t)
				s, g := r.neighbours(head, c.rules)
				if c.guest != nil {
					c.guest(g)
				}
				edits := []func(*pt.TCP){}
				if c.frame != nil {
					edits = append(edits, c.frame)
				}
				h, frame := tsoTo(c.v6, 5000, 1000, edits...)
				want := cutBy(t, h, frame)
				s.send(h, frame)
				r.step()
				r.step()
				got := g.take()
				if whole := len(got) == 1 && r.ledger(2).Sealed[flowtable.ReasonGSOInput] == 1; whole != c.whole {
					t.Errorf("whole: %v, %d frames", whole, len(got))
				}
				if name == "RSC_EXT, lossless" {
					if h := got[0].hdr; h.Flags != virtio.HdrNeedsCsum|virtio.HdrRSCInfo || h.CsumStart != 5 || h.CsumOffset != 0 {
						t.Errorf("%+v", h)
					}
				}
				if name != "Windows' rules" { // under which a frame cut again need not be the same packets
					packets(t, got, want...)
				}
				if l := r.ledger(2); l.In != 5 {
					t.Errorf("%d packets came", l.In)
				}
				r.dropped(2, nil)
			})
		}
	}
}

// What is no TSO frame of TCP is refused as it is on its way to the wire, and reaches no neighbour.
func TestABadTSOFrameReachesNoNeighbour(t *testing.T) {
	h, frame := tsoTo(false, 5000, 1000)
	big := h
	big.GSOSize = 1449
	tiny := h
	tiny.GSOSize = 19 // 264 packets
	wrong := slices.Clone(frame)
	wrong[16]++ // IP length
	for name, c := range map[string]struct {
		h     virtio.NetHdr
		frame []byte
		why   flowtable.Reason
	}{
		"packets above the MTU": {big, frame, flowtable.ReasonBadLength},
		"too many packets":      {tiny, frame, flowtable.ReasonBadLength},
		"a wrong IP length":     {h, wrong, flowtable.ReasonMalformed},
	} {
		r := newRig(t)
		s, g := r.neighbours(HeadRoom, rules())
		s.send(c.h, c.frame)
		r.step()
		r.txDropped(1, byReason{c.why: 1})
		if n := len(g.take()); n != 0 || r.ledger(2).In != 0 {
			t.Errorf("%s: %d frames, %d packets", name, n, r.ledger(2).In)
		}
	}
}

// No packet of a flow overtakes another: what is held of it leaves in front of a superframe that came whole, whatever the hold.
func TestASuperframeStaysBehindWhatIsHeldOfItsFlow(t *testing.T) {
	for _, hold := range []time.Duration{0, time.Millisecond} {
		for _, v6 := range []bool{false, true} {
			r := newRig(t)
			s, g := r.neighbours(HeadRoom, rules(func(c *flowtable.PortConfig) { c.Hold = hold }))
			r.inject(to(2, 500).Frame()) // another flow's, in front of it all
			p := from(1, macOf(2), 1000)
			p.V6, p.SrcPort = v6, 999
			seq := p.Seq
			var want []uint32
			add := func(n, size int) {
				p.Len, p.Seq, p.Partial = n, seq, size > 0
				want = append(want, seq)
				h := noHdr
				if size > 0 {
					h, _ = tsoTo(v6, n, size)
				}
				s.send(h, p.Frame())
				seq += uint32(n)
			}
			add(1000, 0)
			add(1000, 0)
			p.Flags = pt.ACK
			add(0, 0) // an acknowledgement, alone
			add(5000, 1000)
			add(1000, 0)
			add(4000, 1000)
			add(600, 0)
			last := seq
			for range 3 {
				r.step()
				r.advance(2 * time.Millisecond)
			}
			next := want[0]
			for i, f := range g.take() {
				in := parse(f.data)
				if binary.BigEndian.Uint16(f.data[in.L4:]) != 999 {
					continue
				}
				if at := binary.BigEndian.Uint32(f.data[in.L4+4:]); at != next {
					t.Fatalf("hold %v, frame %d begins at %d, %d is due", hold, i, at-want[0], next-want[0])
				}
				next += uint32(len(f.data)) - in.Payload
				if len(f.data) == minWire {
					next = next - uint32(minWire) + in.Payload + in.PayloadLen
				}
			}
			if next != last || r.w.ports[1].cnt.TxWhole != 2 {
				t.Errorf("hold %v: bytes up to %d of %d, %d whole", hold, next-want[0], last-want[0], r.w.ports[1].cnt.TxWhole)
			}
		}
	}
}

// 100,000 frames with headers that mean nothing, and vnet headers too: what a neighbour gets is legal, from the VM's own address, and every
// packet is explained.
func TestRandomTSOFramesForANeighbour(t *testing.T) {
	n := 100_000
	if raceEnabled || testing.Short() {
		n = 10_000
	}
	rng := rand.New(rand.NewPCG(5, 6))
	r := newRig(t)
	s, g := r.neighbours(HeadRoom, rules(func(c *flowtable.PortConfig) { c.ECN = true }))
	features := allFeatures &^ (1 << virtio.FRSCExt)
	whole := 0
	for range n {
		p := from(1, macOf(2), rng.IntN(4000))
		p.V6, p.Partial = rng.IntN(2) == 0, true
		frame := p.Frame()
		if rng.IntN(3) == 0 {
			frame = datagramsFrom(macOf(2), rng.IntN(4000), func(u *pt.UDP) { u.V6 = p.V6 })
		}
		for range rng.IntN(3) {
			frame[6+rng.IntN(min(80, len(frame)-6))] = byte(rng.Uint32())
		}
		h := anyHdr(t, rng)
		switch rng.IntN(5) {
		case 0:
			h.GSOType, h.GSOSize = virtio.GSOTCPv4, h.GSOSize&0x7ff|1
		case 1:
			h.GSOType, h.GSOSize = virtio.GSOTCPv6, h.GSOSize&0x7ff|1
		case 3:
			h.GSOType, h.GSOSize, h.Flags = virtio.GSOUDPL4, h.GSOSize&0x3ff|64, virtio.HdrNeedsCsum
			h.CsumStart, h.CsumOffset = 34, 6
		case 2:
			h, _ = tsoTo(p.V6, 0, int(h.GSOSize&0x3ff|256))
		}
		if virtio.CheckTx(&h, len(frame), allFeatures) != nil {
			h, _ = tsoTo(p.V6, 0, 1000)
		}
		s.send(h, frame)
		for range 8 {
			if len(s.queue) == 0 {
				break
			}
			r.step()
		}
		r.nic.sent()
		for _, f := range g.take() {
			if [6]byte(f.data[6:12]) != macOf(1) {
				t.Fatalf("from %x", f.data[6:12])
			}
			if f.hdr.GSOType == 0 {
				continue
			}
			whole++
			f.hdr.NumBuffers = 1
			if err := virtio.CheckRx(&f.hdr, f.data, features); err != nil {
				t.Fatalf("%v: %+v, %x, from %+v, %x", err, f.hdr, head(f.data), h, head(frame))
			}
		}
	}
	if whole < n/20 || r.w.ports[1].cnt.TxWhole < uint64(n/20) {
		t.Errorf("only %d superframes", whole)
	}
}
