package datapath

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// usoCuts is the header of a guest that leaves datagrams of so many bytes to its device.
func usoCuts(size uint16) virtio.NetHdr {
	return virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOUDPL4, GSOSize: size, CsumStart: 34, CsumOffset: 6}
}

// datagramsFrom is VM 1's frame of so many bytes of datagrams to dst.
func datagramsFrom(dst [6]byte, payload int, edits ...func(*pt.UDP)) []byte {
	u := pt.UDP{SrcMAC: macOf(1), DstMAC: dst, Len: payload, Partial: true}
	for _, e := range edits {
		e(&u)
	}
	return u.Frame()
}

// usoTrains are what drivers, and drivers that lie a little, hand over.
var usoTrains = map[string]struct {
	payload int
	size    uint16
	edit    func(*pt.UDP)
}{
	"QUIC":             {40 * 1200, 1200, func(*pt.UDP) {}},
	"a short last one": {9*1200 + 7, 1200, func(*pt.UDP) {}},
	"an odd size":      {10 * 333, 333, func(*pt.UDP) {}},
	"64 datagrams":     {64 * 1000, 1000, func(*pt.UDP) {}},
	"128 datagrams":    {128 * 500, 500, func(*pt.UDP) {}},
	"one byte each":    {100, 1, func(*pt.UDP) {}},
	"one datagram":     {700, 1200, func(*pt.UDP) {}},
	"nothing":          {0, 1200, func(*pt.UDP) {}},
	"the longest":      {65535 - 28, 1400, func(*pt.UDP) {}},
	"an ID that wraps": {5000, 1000, func(u *pt.UDP) { u.IP.ID = 0xfffe }},
	"IP length 0": {5000, 1000, func(u *pt.UDP) {
		if u.IP.IPLenDelta = -5028; u.V6 {
			u.IP.IPLenDelta = -5008
		}
	}},
	"a whole sum":   {5000, 1000, func(u *pt.UDP) { u.Partial = false }},
	"TOS, TTL":      {5000, 1000, func(u *pt.UDP) { u.IP.TOS, u.IP.TTL = 0xb9, 7 }},
	"IP options":    {5000, 1000, func(u *pt.UDP) { u.IP.IPOpts = []byte{1, 1, 1, 1} }},
	"without DF":    {5000, 1000, func(u *pt.UDP) { u.IP.NoDF = true }},
	"UDP length 0":  {5000, 1000, func(u *pt.UDP) { u.LenDelta = -5008 }},
	"no sum at all": {5000, 1000, func(u *pt.UDP) { u.NoSum = true }},
}

// The kernel makes of a USO frame exactly the datagrams that we would cut, whether the device was thought to take it or not: each with its own
// lengths, checksum and ID (net/ipv4/udp_offload.c, __udp_gso_segment).
func TestTheKernelCutsDatagramsAsWeDo(t *testing.T) {
	for _, direct := range []bool{false, true} {
		k := newKernelRig(t, false, direct)
		k.net.A.SetOffload(t, "tx-udp-segmentation", false)
		sent := uint64(0)
		for i, vlan := range []uint16{0, 5} {
			_, s := k.sender(uint32(i+1), func(c *PortConfig) { c.Addr.VLAN = vlan })
			s.head = HeadRoom
			for name, c := range usoTrains {
				for _, v6 := range []bool{false, true} {
					if direct && k.wire.Direct() != direct {
						k.wire.SetDatagrams(true) // a device that was thought to take them
						if err := k.wire.SetDirect(true); err != nil {
							t.Fatal(err)
						}
					}
					frame := datagramsFrom(wire, c.payload, func(u *pt.UDP) {
						u.V6, u.SrcMAC = v6, macOf(uint32(i+1))
						c.edit(u)
						if v6 && len(u.IP.IPOpts) > 0 {
							u.IP.IPOpts = nil
						}
					})
					want, err := cutAll(t, frame, flowtable.GSO{Type: virtio.GSOUDPL4, Size: c.size})
					if err != nil {
						t.Fatal(name, err)
					}
					for j := range want {
						if len(want[j]) < minWire {
							want[j] = append(want[j], make([]byte, minWire-len(want[j]))...)
						}
						if vlan != 0 {
							want[j] = netnstest.Tag(want[j], vlan)
						}
					}
					s.send(usoCuts(c.size), frame)
					k.step()
					sent++
					got := k.captured(len(want))
					for j := range got {
						if n := len(got[j]); n < len(want[j]) && n >= len(want[j])-minWire { // nobody pads what a veth cuts
							want[j] = want[j][:n]
						}
						if !bytes.Equal(got[j], want[j]) {
							t.Fatalf("%s, IPv6 %v, VLAN %d, datagram %d:\n got %x\nwant %x", name, v6, vlan, j, head(got[j]), head(want[j]))
						}
					}
				}
			}
		}
		n := k.w.ports[1].cnt.TxKernel + k.w.ports[2].cnt.TxKernel
		if n != sent || k.w.cnt.TxRingFull != 0 || k.w.cutUSO != 0 {
			t.Errorf("%d of %d by the kernel, %d lost, cut from %d datagrams on", n, sent, k.w.cnt.TxRingFull, k.w.cutUSO)
		}
	}
}

// A device that takes TSO frames and no USO frames gets those by its discipline, which cuts; one that takes both gets them whole.
func TestOnlyADeviceThatTakesUSOFramesGetsThem(t *testing.T) {
	for _, takes := range []bool{false, true} {
		k := newKernelRig(t, true, true)
		k.net.A.SetOffload(t, "tx-udp-segmentation", takes)
		k.wire.SetDatagrams(takes)
		_, s := k.sender(1)
		s.head = HeadRoom
		frame := datagramsFrom(wire, 12000)
		want := [][]byte{frame}
		if !takes {
			var err error
			if want, err = cutAll(t, frame, flowtable.GSO{Type: virtio.GSOUDPL4, Size: 1000}); err != nil {
				t.Fatal(err)
			}
		}
		s.send(usoCuts(1000), frame)
		k.step()
		got := k.captured(len(want))
		for i := range got { // its sum may be left to a device
			copy(got[i][40:], want[i][40:42])
		}
		same(t, fmt.Sprint("takes USO frames: ", takes), got, want)
		if k.wire.Direct() != takes {
			t.Errorf("takes them: %v, past the discipline: %v", takes, k.wire.Direct())
		}
		if c := k.w.ports[1].cnt; c.TxFrames != 1 || c.TxKernel != 1 || c.TxWire != 12 || c.TxBytes != uint64(len(frame)) {
			t.Errorf("%+v", c)
		}
	}
}

// By AF_XDP the datagrams are cut here.
func TestDatagramsAreCutForTheWire(t *testing.T) {
	for name, c := range usoTrains {
		for _, v6 := range []bool{false, true} {
			r := newRig(t)
			r.nic.txSize = maxTxPackets
			r.nic.keep(maxTxPackets)
			_, s := r.sender(1)
			frame := datagramsFrom(wire, c.payload, func(u *pt.UDP) { u.V6 = v6; c.edit(u) })
			want, err := cutAll(t, frame, flowtable.GSO{Type: virtio.GSOUDPL4, Size: c.size})
			if err != nil {
				t.Fatal(name, err)
			}
			packets := uint64(len(want))
			for i := range want {
				want[i] = append(want[i], make([]byte, max(0, minWire-len(want[i])))...)
			}
			s.send(usoCuts(c.size), frame)
			r.step()
			r.onWire(want...)
			if c := r.w.ports[1].cnt; c.TxFrames != 1 || c.TxWire != packets || c.TxBytes != uint64(len(frame)) {
				t.Errorf("%s: %+v", name, c)
			}
		}
	}
}

// Headers that lie are refused, counted, and send nothing, by either way and to a VM beside.
func TestUSOFramesThatLieAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		payload int
		hdr     virtio.NetHdr
		edit    func(*pt.UDP)
		why     flowtable.Reason
	}{
		"more datagrams than a kernel sends": {129 * 100, usoCuts(100), func(*pt.UDP) {}, flowtable.ReasonBadLength},
		"a datagram beyond the MTU":          {9000, usoCuts(1473), func(*pt.UDP) {}, flowtable.ReasonBadLength},
		"UDP's length is longer":             {5000, usoCuts(1000), func(u *pt.UDP) { u.LenDelta = 1 }, flowtable.ReasonMalformed},
		"UDP's length is shorter":            {5000, usoCuts(1000), func(u *pt.UDP) { u.LenDelta = -1 }, flowtable.ReasonMalformed},
		"IP's length is longer":              {5000, usoCuts(1000), func(u *pt.UDP) { u.IP.IPLenDelta = 1 }, flowtable.ReasonMalformed},
		"a fragment":                         {5000, usoCuts(1000), func(u *pt.UDP) { u.IP.MF = true }, flowtable.ReasonMalformed},
		"TCP's type":                         {5000, kernelCuts(virtio.GSOTCPv4, 1000), func(*pt.UDP) {}, flowtable.ReasonMalformed},
		"no headers":                         {0, usoCuts(1000), func(u *pt.UDP) { u.IP.IPOpts = bytes.Repeat([]byte{1}, 40); u.LenDelta = 900 }, flowtable.ReasonMalformed},
	} {
		frame := func(dst [6]byte) []byte { return datagramsFrom(dst, c.payload, c.edit) }
		r := newRig(t)
		_, s := r.sender(1)
		s.send(c.hdr, frame(wire))
		r.step()
		r.onWire()
		r.txDropped(1, byReason{c.why: 1})

		r, k := newWireRig(t)
		_, s = r.sender(1)
		s.head = HeadRoom
		s.send(c.hdr, frame(wire))
		r.step()
		if len(k.got) != 0 {
			t.Errorf("%s: the kernel got it", name)
		}
		r.txDropped(1, byReason{c.why: 1})

		r = newRig(t)
		s, g := r.neighbours(HeadRoom, usoRules())
		s.send(c.hdr, frame(macOf(2)))
		r.step()
		if n := len(g.take()); n != 0 {
			t.Errorf("%s: a neighbour got %d frames", name, n)
		}
		r.txDropped(1, byReason{c.why: 1})
	}
}

// A kernel that refuses USO frames loses none: they are cut here from the first refusal on, behind what the kernel has of the virtqueue.
func TestAKernelThatRefusesUSOFramesLosesNone(t *testing.T) {
	r, k := newWireRig(t)
	k.refuse = func(h virtio.NetHdr, _ int) bool { return h.GSOType == virtio.GSOUDPL4 }
	_, s := r.sender(1)
	s.head = HeadRoom
	tso := func(seq uint32) []byte {
		return from(1, wire, 3000).With(func(p *pt.TCP) { p.Seq, p.Partial = seq, true }).Frame()
	}
	var want [][]byte
	for i := range uint32(6) {
		s.send(kernelCuts(virtio.GSOTCPv4, 1000), tso(3000*i))
		frame := datagramsFrom(wire, 5000, func(u *pt.UDP) { u.Seq = i })
		s.send(usoCuts(1000), frame)
		cut, err := cutAll(t, frame, flowtable.GSO{Type: virtio.GSOUDPL4, Size: 1000})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, cut...)
	}
	var got [][]byte
	k.busy = true // what the socket has sent is on its way
	for range 20 {
		r.step()
		r.advance(txRetry + time.Microsecond)
	}
	if n := len(r.nic.sent()); n != 0 || len(s.queue) != 11 || r.w.cutUSO != 1 {
		t.Fatalf("%d datagrams have left, %d frames wait, cut from %d datagrams on", n, len(s.queue), r.w.cutUSO)
	}
	k.busy = false
	for range 50 {
		r.step()
		got = append(got, r.nic.sent()...)
		r.nic.sent()
		r.advance(txRetry + time.Microsecond)
	}
	same(t, "datagrams", got, want)
	if n := len(k.packets()); n != 18 || len(s.queue) != 0 {
		t.Errorf("%d packets of TCP, %d frames wait", n, len(s.queue))
	}
	r.txDropped(1, nil)
	if c := r.w.ports[1].cnt; c.TxFrames != 12 || c.TxKernel != 6 {
		t.Errorf("%+v", c)
	}
}

// A kernel that cuts no more than 64 datagrams gets those whole, and the longer trains are cut here.
func TestAKernelThatCuts64DatagramsGetsThose(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r, k := newWireRig(t)
		r.nic.txSize = maxTxPackets
		r.nic.keep(maxTxPackets)
		k.refuse = func(h virtio.NetHdr, n int) bool { return n-int(h.HdrLen) > 64*int(h.GSOSize) }
		_, s := r.sender(1)
		s.head = HeadRoom
		for _, n := range []int{64, 65, 64, 128, 64} {
			frame := datagramsFrom(wire, n*100, func(u *pt.UDP) { u.V6 = v6 })
			want, err := cutAll(t, frame, flowtable.GSO{Type: virtio.GSOUDPL4, Size: 100})
			if err != nil {
				t.Fatal(err)
			}
			s.send(usoCuts(100), frame)
			var byKernel, here [][]byte
			for range 5 {
				r.step()
				byKernel, here = append(byKernel, k.packets()...), append(here, r.nic.sent()...)
				r.advance(txRetry + time.Microsecond)
			}
			if (len(here) == 0) != (n <= 64) {
				t.Errorf("of %d datagrams %d were cut here", n, len(here))
			}
			same(t, "datagrams", append(byKernel, here...), want)
		}
		if r.w.cutUSO != 65 || len(s.queue) != 0 {
			t.Errorf("cut from %d datagrams on, %d frames wait", r.w.cutUSO, len(s.queue))
		}
		r.txDropped(1, nil)
	}
}

// A guest whose memory vanishes says nothing of the kernel.
func TestMemoryThatVanishesIsNoRefusalOfUSO(t *testing.T) {
	r, k := newWireRig(t)
	k.room, k.full = 0, tap.ErrMemory
	_, s := r.sender(1)
	s.send(usoCuts(1000), datagramsFrom(wire, 5000))
	s.used = func() { k.room = -1 }
	r.step()
	r.txDropped(1, byReason{flowtable.ReasonMalformed: 1})
	if r.w.cutUSO != 0 {
		t.Error("all guests' datagrams are cut from now on")
	}
}

// usoRules are those of a guest that takes superframes of UDP.
func usoRules(edits ...func(*flowtable.PortConfig)) flowtable.PortConfig {
	return rules(append([]func(*flowtable.PortConfig){func(c *flowtable.PortConfig) { c.UDP, c.USO4, c.USO6 = true, true, true }}, edits...)...)
}

// A VM beside the sender gets a USO frame as the superframe that it is, where the table would have made it, and otherwise its datagrams.
func TestANeighbourGetsAUSOFrameWhole(t *testing.T) {
	for name, c := range map[string]struct {
		rules   flowtable.PortConfig
		v6      bool
		payload int
		whole   bool
		atLeast int // superframes
	}{
		"it takes them":           {usoRules(), false, 12000, true, 1},
		"IPv6":                    {usoRules(), true, 12000, true, 1},
		"no USO4":                 {usoRules(func(c *flowtable.PortConfig) { c.USO4 = false }), false, 12000, false, 0},
		"no USO4, and it is v6":   {usoRules(func(c *flowtable.PortConfig) { c.USO4 = false }), true, 12000, true, 1},
		"the policy is off":       {usoRules(func(c *flowtable.PortConfig) { c.UDP = false }), false, 12000, false, 0},
		"coalescing is off":       {usoRules(func(c *flowtable.PortConfig) { c.Coalesce = false }), false, 12000, false, 0},
		"Windows' rules":          {usoRules(func(c *flowtable.PortConfig) { c.Profile, c.RSCExt = flowtable.RSC, true }), false, 12000, true, 1},
		"the port is excluded":    {usoRules(func(c *flowtable.PortConfig) { c.ExcludePorts = []uint16{8000} }), false, 12000, false, 0},
		"as long as max-bytes":    {usoRules(func(c *flowtable.PortConfig) { c.MaxBytes = 12028 }), false, 12000, true, 1},
		"longer than max-bytes":   {usoRules(func(c *flowtable.PortConfig) { c.MaxBytes = 12027 }), false, 12000, false, 1},
		"more than we would make": {usoRules(), false, 65 * 1000, false, 1},
	} {
		for _, head := range []int{0, HeadRoom} {
			r := newRig(t)
			r.nic.txSize = maxTxPackets
			r.nic.keep(maxTxPackets)
			s, g := r.neighbours(head, c.rules)
			frame := datagramsFrom(macOf(2), c.payload, func(u *pt.UDP) { u.V6 = c.v6 })
			h := usoCuts(1000)
			want := cutBy(t, h, frame)
			h.HdrLen, h.CsumStart, h.CsumOffset = 9, 77, 3 // the sender's own words for it
			s.send(h, frame)
			r.step()
			r.step()
			got := g.take()
			packets(t, got, want...)
			super := 0
			for i := range got {
				if got[i].hdr.GSOType == 0 {
					continue
				}
				super++
				got[i].hdr.NumBuffers = 1
				if err := virtio.CheckRx(&got[i].hdr, got[i].data, allFeatures); err != nil {
					t.Errorf("%s: %v: %+v", name, err, got[i].hdr)
				}
			}
			if whole := r.ledger(2).Sealed[flowtable.ReasonGSOInput] == 1; whole != c.whole || super < c.atLeast || c.whole && len(got) != 1 {
				t.Errorf("%s: whole %v, %d superframes in %d frames", name, whole, super, len(got))
			}
			n := uint64(len(want))
			if p, l := &r.w.ports[1].cnt, r.ledger(2); p.TxFrames != 1 || p.TxWire != n || l.In != n || (p.TxWhole == 1) != c.whole {
				t.Errorf("%s: %+v, %+v", name, *p, *l)
			}
			r.dropped(2, nil)
		}
	}
}
