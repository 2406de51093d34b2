package datapath

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/tap"
)

// fakeHost is what the host sends, batch by batch.
type fakeHost struct{ queue []tap.HostFrame }

func (h *fakeHost) Recv(out *[tap.HostBatch]tap.HostFrame) (n int, more bool) {
	n = copy(out[:], h.queue)
	h.queue = h.queue[n:]
	return n, n == tap.HostBatch
}

func (h *fakeHost) FD() int                   { return -1 }
func (h *fakeHost) Dropped() (uint64, uint64) { return 0, 0 }

// host makes the host a neighbour: what it sends, and what it got.
func (l *lan) host() (*fakeHost, *fakeWire) {
	in, out := &fakeHost{}, &fakeWire{tb: l.tb, room: -1, full: tap.ErrFull}
	l.w.host.Host = Host{In: in, Out: out, Stations: &Stations{}}
	l.w.host.copies = make([]byte, 0, hostCopies)
	return in, out
}

// receiveHost lets the host send frames in a VLAN.
func (l *lan) receiveHost(in *fakeHost, vlan uint16, frames ...[]byte) {
	for _, f := range frames {
		in.queue = append(in.queue, tap.HostFrame{Data: bytes.Clone(f), TCI: vlan, Tagged: vlan != 0})
	}
	for l.w.host.ready = true; l.w.host.ready; {
		l.w.step()
	}
}

// got returns the frames that were handed to the kernel, and forgets them.
func (f *fakeWire) heard() (all [][]byte) {
	for _, w := range f.got {
		all = append(all, w.data)
	}
	f.got = nil
	return all
}

func hasHost(c *PortConfig) { c.Host = true }

// The host and whoever was seen behind it get a VM's frames, and nobody else does; the wire gets all others. A VM without the host has today's
// way for all of them.
func TestTheHostIsReachedByItsAddressesAlone(t *testing.T) {
	behind, own := [6]byte{2, 8, 0, 0, 0, 1}, [6]byte{2, 8, 0, 0, 0, 2}
	for _, neighbour := range []bool{true, false} {
		l := newLAN(t, 64)
		in, out := l.host()
		g := l.vm(func(c *PortConfig) { c.Host = neighbour })
		near, bridged := l.vm(hasHost), l.vm(func(c *PortConfig) { c.Bridged = true })
		seven := l.vm(inLAN(7), hasHost)
		l.w.host.Stations.SetOwn([][6]byte{own})
		l.receiveHost(in, 0, lanFrame(near.mac, behind, privateType))
		near.heard()
		for dst, isHost := range map[[6]byte]bool{lanHost: true, own: true, behind: true, bridged.mac: true, lanStation: false, seven.mac: false} {
			f := lanFrame(dst, g.mac, privateType)
			l.send(g, f)
			toHost, toWire := [][]byte{f}, [][]byte(nil)
			if !isHost || !neighbour {
				toHost, toWire = nil, [][]byte{f}
			}
			sameFrames(t, fmt.Sprintf("at the host, of %x", dst), out.heard(), toHost...)
			sameFrames(t, fmt.Sprintf("on the wire, of %x", dst), l.sent(), toWire...)
		}
		for _, v := range []*lanVM{near, bridged, seven} {
			sameFrames(t, "at a VM", v.heard())
		}
		// What was seen behind the host in one VLAN is on the wire in another. The host's own addresses are its own in all.
		f := lanFrame(behind, seven.mac, privateType)
		l.send(seven, f)
		if len(out.heard()) != 0 || len(l.sent()) != 1 {
			t.Error("a station crossed into another VLAN")
		}
		l.send(seven, lanFrame(lanHost, seven.mac, privateType))
		if got := out.heard(); len(got) != 1 || !bytes.Equal(got[0][12:16], []byte{0x81, 0, 0, 7}) {
			t.Errorf("to the host of VLAN 7: %x", got)
		}
		if sent := l.w.port(g.index).cnt.ToHost; neighbour && sent != 4 || !neighbour && sent != 0 {
			t.Errorf("%d counted", sent)
		}
	}
}

// Broadcast and multicast of a VM reach the wire, its neighbours and the host once each, tagged as on the wire; those of the host reach the VMs of
// their VLAN that have it as neighbour.
func TestGroupFramesCrossBetweenVMsAndHostOnce(t *testing.T) {
	l := newLAN(t, 256)
	in, out := l.host()
	vms := map[uint16][2]*lanVM{0: {l.vm(hasHost), l.vm(hasHost)}, 7: {l.vm(hasHost, inLAN(7)), l.vm(hasHost, inLAN(7))}}
	without := l.vm()
	for vlan, two := range vms {
		for _, dst := range groupAddresses {
			f := lanFrame(dst, two[0].mac, privateType)
			l.send(two[0], f)
			wire := l.sent()
			sameFrames(t, "at the host", out.heard(), wire...)
			if len(wire) != 1 {
				t.Errorf("%d frames on the wire", len(wire))
			}
			sameFrames(t, "at its neighbour", two[1].heard(), f)
			if vlan == 0 {
				sameFrames(t, "at the one without the host", without.heard(), f)
			}
			f = lanFrame(dst, lanHost, privateType)
			l.receiveHost(in, vlan, f)
			sameFrames(t, "from the host", append(two[0].heard(), two[1].heard()...), f, f)
			sameFrames(t, "back at the host", out.heard())
			sameFrames(t, "on the wire", l.sent())
			for other, vms := range vms {
				if other != vlan {
					sameFrames(t, "in another VLAN", append(vms[0].heard(), vms[1].heard()...))
				}
			}
			sameFrames(t, "at the one without the host", without.heard())
		}
	}
	l.send(without, lanFrame(everybody, without.mac, privateType))
	sameFrames(t, "at the host", out.heard())
}

// Group frames and others to the host share a socket: each is handed over once, in its turn, and booked as what it is.
func TestGroupFramesAndOthersShareTheSocketToTheHost(t *testing.T) {
	l := newLAN(t, 256)
	_, out := l.host()
	g := l.vm(hasHost)
	all, one := lanFrame(everybody, g.mac, privateType), lanFrame(lanHost, g.mac, privateType)
	var want [][]byte
	for _, f := range [][]byte{all, one, one, all, all, one} {
		g.sends = append(g.sends, vhost.TxFrame{Data: f})
		want = append(want, f)
	}
	for len(g.sends) > 0 {
		l.w.step()
	}
	sameFrames(t, "at the host", out.heard(), want...)
	if c := l.w.port(g.index).cnt; c.ToHost != 3 || c.TxFrames != 6 || c.TxWire != 6 || len(l.sent()) != 3 {
		t.Errorf("%+v", c)
	}
	if l.w.cnt.HostLost != 0 {
		t.Errorf("%d lost", l.w.cnt.HostLost)
	}
}

// A VM's frame that a bridge sends back reaches nobody again, and its address is not learned: a loop of bridges ends here.
func TestAVMsFrameThatTheHostSendsBackEndsHere(t *testing.T) {
	l := newLAN(t, 64)
	in, out := l.host()
	g, other := l.vm(hasHost), l.vm(hasHost)
	all := lanFrame(everybody, g.mac, privateType)
	l.receiveHost(in, 0, all, lanFrame(other.mac, g.mac, privateType))
	sameFrames(t, "at a VM", append(other.heard(), g.heard()...))
	if d := l.rxDropped(g); d[flowtable.ReasonHairpin] != 2 {
		t.Errorf("%v", d)
	}
	f := lanFrame(g.mac, other.mac, privateType)
	l.send(other, f)
	sameFrames(t, "at the VM", g.heard(), f)
	sameFrames(t, "at the host", out.heard())
}

// A station that the wire shows is on the wire, but for the host's own addresses; one that says nothing is forgotten.
func TestAStationIsWhereItWasSeenLast(t *testing.T) {
	l := newLAN(t, 64)
	in, out := l.host()
	g := l.vm(hasHost)
	behind, own := [6]byte{2, 8, 0, 0, 0, 1}, [6]byte{2, 8, 0, 0, 0, 2}
	l.w.host.Stations.SetOwn([][6]byte{own})
	reached := func(dst [6]byte, want bool) {
		t.Helper()
		l.send(g, lanFrame(dst, g.mac, privateType))
		if host, wire := len(out.heard()), len(l.sent()); (host == 1) != want || host+wire != 1 {
			t.Errorf("%x: %d times at the host, %d on the wire", dst, host, wire)
		}
	}
	speak := func() { l.receiveHost(in, 0, lanFrame(g.mac, behind, privateType)) }
	reached(behind, false)
	speak()
	reached(behind, true)
	l.receiveGroup(lanGroupFrame{data: lanFrame(everybody, behind, privateType)})
	l.receiveGroup(lanGroupFrame{data: lanFrame(everybody, own, privateType)})
	reached(behind, false)
	reached(own, true)
	speak()
	l.now += stationAge - time.Second
	reached(behind, true)
	speak()
	l.now += stationAge - time.Second
	reached(behind, true)
	l.now += time.Second
	reached(behind, false)
}

// A station behind the host is on the wire from the first frame on that comes from there, also one to a single VM: who pretends to be the gateway behind
// the host's bridge has its frames for no longer than it is silent. The host's own addresses stay.
func TestAFrameToOneVMShowsWhereItsSenderIs(t *testing.T) {
	r, in, _, _, g := newHostRig(t, rules())
	gateway := Addr{MAC: macOf(8)}
	fromGateway := to(1, 100)
	fromGateway.SrcMAC = gateway.MAC
	for range 3 {
		r.fromHost(in, tap.HostFrame{Data: fromGateway.Frame()})
		if !r.w.host.Stations.has(gateway, r.w.now) {
			t.Fatal("what was seen behind the host is not known")
		}
		r.inject(fromGateway.Frame(), fromGateway.Frame())
		r.step()
		if r.w.host.Stations.has(gateway, r.w.now) {
			t.Fatal("it was seen on the wire, and is behind the host")
		}
	}
	own := to(1, 100)
	own.SrcMAC = macOf(9)
	r.inject(own.Frame())
	r.step()
	if !r.w.host.Stations.has(Addr{MAC: macOf(9)}, r.w.now) {
		t.Error("somebody on the wire has taken the host's own address")
	}
	if len(g.take()) != 10 {
		t.Error("frames are missing")
	}
}

func TestStationsAreBounded(t *testing.T) {
	s := &Stations{}
	addr := func(i int) Addr {
		return Addr{VLAN: uint16(i % 4095), MAC: [6]byte{2, 7, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}}
	}
	for i := range 100000 {
		s.learn(addr(i), int64(i))
	}
	if n := len(s.Learned(100000)); n > stationSets*stationWays || n < stationSets*stationWays*9/10 {
		t.Errorf("%d are known", n)
	}
	for i := 99990; i < 100000; i++ {
		if !s.has(addr(i), 100000) {
			t.Errorf("%d is not known", i)
		}
	}
	again := &Stations{}
	again.Learn(s.Learned(100000), 5)
	if len(again.Learned(5)) != len(s.Learned(100000)) || !again.has(addr(99999), 5) {
		t.Error("an heir knows others")
	}
	if n := testing.AllocsPerRun(100, func() { s.learn(addr(7), 1); s.has(addr(9), 1); s.giveUp(addr(7)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestIsolationHoldsTowardsTheHostsBridge(t *testing.T) {
	l := newLAN(t, 64)
	in, out := l.host()
	g := l.vm(hasHost, func(c *PortConfig) { c.Isolated = true })
	bridged := l.vm(func(c *PortConfig) { c.Bridged = true })
	l.send(g, lanFrame(bridged.mac, g.mac, privateType))
	if d := l.txDropped(g); d[flowtable.ReasonIsolated] != 1 || len(out.heard())+len(l.sent()) != 0 {
		t.Errorf("%v", d)
	}
	l.receiveHost(in, 0, lanFrame(g.mac, bridged.mac, privateType), lanFrame(everybody, bridged.mac, privateType))
	sameFrames(t, "at the isolated one", g.heard())
	if d := l.rxDropped(g); d[flowtable.ReasonIsolated] != 2 {
		t.Errorf("%v", d)
	}
	l.send(g, lanFrame(lanHost, g.mac, privateType))
	if len(out.heard()) != 1 {
		t.Error("it does not reach its host")
	}
}

func TestNoVMTakesTheHostsAddress(t *testing.T) {
	l := newLAN(t, 64)
	_, out := l.host()
	own := [6]byte{2, 8, 0, 0, 0, 2}
	l.w.host.Stations.SetOwn([][6]byte{own})
	g := l.vm(hasHost, maySpoof)
	for _, src := range [][6]byte{own, lanHost} {
		l.send(g, lanFrame(everybody, src, privateType))
	}
	if d := l.txDropped(g); d[flowtable.ReasonSourceMAC] != 2 || len(out.heard())+len(l.sent()) != 0 {
		t.Errorf("%v", d)
	}
}
