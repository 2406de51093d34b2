package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// MTUs of jumbo wires: what a kernel brings in several chunks, and what an older one brings in one (3822 at most).
const (
	jumboMTU = 9000
	inOneMTU = 3800
)

// multiBuffer is the kernel that brings a frame in several chunks.
var multiBuffer = netnstest.Kernel(6, 6)

// jumboRig is a rig whose wire takes packets of 9000 bytes.
func jumboRig(t *testing.T, o netnstest.Options) *rig {
	t.Helper()
	netnstest.Need(t, multiBuffer)
	o.MTU = jumboMTU
	return newRig(t, o)
}

// setMTU sets the MTU of a side's device.
func setMTU(t *testing.T, s *netnstest.Side, mtu int) {
	t.Helper()
	s.Output(t, "ip", "link", "set", "dev", s.Dev, "mtu", fmt.Sprint(mtu))
}

// mtuOf is the MTU of a side's device.
func mtuOf(t *testing.T, s *netnstest.Side) (mtu int) {
	t.Helper()
	s.Do(t, func() error {
		l, err := netlink.LinkByName(s.Dev)
		if err == nil {
			mtu = l.Attrs().MTU
		}
		return err
	})
	return mtu
}

// bootJumbo starts a guest whose interface has the uplink's MTU.
func (r *rig) bootJumbo(socket, hw, addr string) *guest {
	r.t.Helper()
	g := r.boot(stackguest.Config{Socket: socket, MAC: mac(r.t, hw)}, addr)
	setMTU(r.t, g.side, mtuOf(r.t, r.net.B))
	return g
}

// mustMergeJumbo transfers to a guest, and looks that what it got are superframes of jumbo segments.
func (r *rig) mustMergeJumbo(g *guest, bytes int64) {
	r.t.Helper()
	before, mtu := g.Stats(), mtuOf(r.t, g.side)
	netnstest.Bulk(r.t, r.net.A, g.side, bytes, false, 2*time.Minute)
	s := g.Stats()
	frames, segments := s.DataFrames-before.DataFrames, s.Segments-before.Segments
	if perSegment := (s.RxBytes - before.RxBytes) / max(1, segments); perSegment < uint64(mtu)*2/3 {
		r.t.Errorf("%d bytes a segment with an MTU of %d: they are no jumbo ones", perSegment, mtu)
	}
	if segments < 2*frames {
		r.t.Errorf("%d segments in %d frames: nothing was merged", segments, frames)
	}
	if s.Violations+s.TapRefused+s.TapErrors != 0 {
		r.t.Errorf("headers against the rules: %+v", s)
	}
}

// With an MTU of 9000 TCP from the wire arrives whole and merged in superframes of jumbo segments, and what the guest sends leaves whole, in
// both modes of XDP. A change of hands and a crash of the process that works do not change that.
func TestJumboFramesArriveMergedAndWhole(t *testing.T) {
	for _, mode := range []api.XDPMode{api.XDPNative, api.XDPGeneric} {
		t.Run(string(mode), func(t *testing.T) {
			queues := 2
			if netnstest.Wired() { // QEMU's hub has one
				if queues = 1; mode == api.XDPGeneric {
					t.Skip("allowed: drivers of NICs take native XDP: a veth shows the other")
				}
			}
			r := jumboRig(t, netnstest.Options{Queues: queues})
			if mode == api.XDPGeneric { // native XDP on a veth wants as many receive queues as its peer sends by
				r.net.B.Output(t, "ethtool", "-L", r.net.B.Dev, "rx", "1")
			}
			g := r.bootJumbo(r.attach("vm0", macA), macA, "10.77.0.10/24")
			var st api.Status
			if r.json(&st, "status"); st.Interfaces[0].MTU != jumboMTU || st.Interfaces[0].XDPMode != mode {
				t.Fatalf("interface %+v", st.Interfaces[0])
			}
			r.mustMergeJumbo(g, 32<<20)
			netnstest.Bulk(t, g.side, r.net.A, 16<<20, false, time.Minute)
			r.replace()
			g.calm(t)
			r.mustMergeJumbo(g, 16<<20)
			r.crash()
			g.calm(t)
			r.mustMergeJumbo(g, 16<<20)
			netnstest.Bulk(t, g.side, r.net.A, 8<<20, false, time.Minute)
			var s api.Stats
			r.json(&s, "stats")
			explain(t, s)
			for name, q := range s.Queues {
				if q.RxTooLong+q.RxNoBuffer+q.RxBroken != 0 {
					t.Errorf("queue %s lost frames: %+v", name, q)
				}
			}
		})
	}
}

// Without TCP: whole packets of the MTU leave by the kernel's way and come in several chunks, alone and in both directions.
func TestJumboPacketsThatAreNoTCPPass(t *testing.T) {
	r := jumboRig(t, netnstest.Options{})
	g := r.bootJumbo(r.attach("vm0", macA), macA, "10.77.0.10/24")
	r.datagram(r.net.A, g.side, g.side.IPv4.Addr().String())
	r.datagram(g.side, r.net.A, r.net.A.IPv4.Addr().String())
	var st api.Stats
	if r.json(&st, "stats"); st.VMs[0].TxKernel == 0 {
		t.Errorf("it did not leave by the kernel: %+v", st.VMs[0])
	}
	r.groupFrame(g)
}

// On a bond jumbo segments come in by the member that is active, before and behind a fail-over, and what is no TCP goes by the bond. Kernels that
// bring no frame in several chunks have bonds, too, and smaller jumbo frames.
func TestJumboFramesOverABond(t *testing.T) {
	r := bondRig(t, "active-backup", "type bridge", 1, 1)
	mtu := jumboMTU
	if multiBuffer.Check() != nil {
		mtu = inOneMTU
	}
	setMTU(t, r.net.B, mtu) // and with it its members'
	for _, port := range []string{"p0", "p1", "lan"} {
		r.net.A.Output(t, "ip", "link", "set", "dev", port, "mtu", fmt.Sprint(mtu))
	}
	g := r.bootJumbo(r.attach("vm0", macA), macA, "10.77.0.10/24")
	for out, members := range []string{"eth0 active, eth1 backup", "eth0 down, eth1 active"} {
		r.pull(0, out == 1)
		r.membersAre(members)
		r.mustMergeJumbo(g, 16<<20)
		netnstest.Bulk(t, g.side, r.net.A, 8<<20, false, time.Minute)
	}
	r.groupFrame(g)
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
}

// groupFrame has a guest send a multicast frame of the MTU, which arrives on the wire whole: by AF_XDP in several chunks, or by a bond.
func (r *rig) groupFrame(g *guest) {
	r.t.Helper()
	t := r.t
	mtu := mtuOf(t, g.side)
	setMTU(t, g.side, mtu+100) // of which nobody has told us
	capture := r.net.A.Capture(t)
	frame := make([]byte, 14+mtu)
	copy(frame, []byte{1, 0, 0x5e, 1, 2, 3})
	copy(frame[6:], g.side.MAC)
	copy(frame[12:], []byte{0x88, 0xb5}) // for experiments
	if err := g.side.Injector(t).Send(frame); err != nil {
		t.Fatal(err)
	}
	capture.Until(5*time.Second, func(f netnstest.Frame) bool { return bytes.Equal(f.Data, frame) })
}

// datagram sends a packet of the MTU of one side to an address of the other.
func (r *rig) datagram(from, to *netnstest.Side, addr string) {
	r.t.Helper()
	var in net.PacketConn
	to.Do(r.t, func() (err error) {
		in, err = net.ListenPacket("udp4", addr+":7777")
		return err
	})
	defer in.Close()
	want := bytes.Repeat([]byte("jumbo "), jumboMTU)[:jumboMTU-28]
	from.Do(r.t, func() error {
		out, err := net.Dial("udp4", addr+":7777")
		if err == nil {
			for range 3 { // the first may be lost while the address is looked up
				_, werr := out.Write(want)
				err = errors.Join(err, werr)
			}
			err = errors.Join(err, out.Close())
		}
		return err
	})
	got := make([]byte, 1<<16)
	_ = in.SetReadDeadline(time.Now().Add(netnstest.Patience(5 * time.Second)))
	n, _, err := in.ReadFrom(got)
	if err != nil || !bytes.Equal(got[:n], want) {
		r.t.Errorf("to %s: %d bytes, %v", addr, n, err)
	}
}

// Jumbo segments reach a VM on its own tap in superframes, and what it sends and all else takes the kernel's path, in a bridge of that MTU. A
// crash and a change of hands do not change that.
func TestJumboSegmentsReachATapInSuperframes(t *testing.T) {
	r := jumboRig(t, netnstest.Options{NoIPv6: true})
	r.bridge()
	vm := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24"), MTU: jumboMTU})
	r.attachTap("vm0", macA)
	goesOn := func() {
		t.Helper()
		before := vm.Stats()
		netnstest.Bulk(t, r.net.A, vm.Guest, toTap, false, 2*time.Minute)
		s := vm.Stats()
		if mean := (s.Bytes - before.Bytes) / max(1, s.Frames-before.Frames); mean < 2*6000 {
			t.Errorf("a mean frame of %d bytes: nothing was merged", mean)
		}
		netnstest.Bulk(t, vm.Guest, r.net.A, fromTap, false, time.Minute)
	}
	goesOn()
	r.datagram(r.net.A, vm.Guest, vm.Guest.IPv4.Addr().String())
	r.crash()
	goesOn()
	r.replace()
	goesOn()
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
}

// Ports of MTU 1500 and 9000 share an uplink: each gets what it takes. A frame of 9,014 bytes to the port of 1500 is refused and counted, from the
// wire, the VM beside it and the host, to it alone and to all, and so is what that port sends beyond its MTU.
func TestPortsOfTwoMTUsShareAnUplink(t *testing.T) {
	r := jumboRig(t, netnstest.Options{NoIPv6: true})
	large := r.bootJumbo(r.attach("large", macA), macA, "10.77.0.10/24")
	small := r.boot(stackguest.Config{Socket: r.attach("small", macB, "--mtu", "1500"), MAC: mac(t, macB)}, "10.77.0.11/24")
	if out := r.must("status"); !strings.Contains(out, "its MTU: 1500") {
		t.Errorf("status does not show the port's MTU:\n%s", out)
	}
	if out := r.must("export"); strings.Count(out, "mtu: 1500") != 1 {
		t.Errorf("export does not have the port's MTU:\n%s", out)
	}
	if out := r.must("attach", r.net.B.Dev, "--vm", "x", "--mac", "52:54:00:00:00:0e", "--vhost-user", filepath.Join(r.dir, "x.sock"), "--mtu", "9001", "--dry-run"); !strings.Contains(out, "is 9000: longer frames are refused") {
		t.Errorf("an MTU above the interface's is not warned of:\n%s", out)
	}
	both := func() {
		t.Helper()
		r.mustMergeJumbo(large, 8<<20)
		netnstest.Bulk(t, r.net.A, small.side, 8<<20, false, time.Minute) // by MSS
		netnstest.Bulk(t, small.side, r.net.A, 4<<20, false, time.Minute)
		netnstest.Bulk(t, large.side, small.side, 4<<20, false, time.Minute)
		netnstest.Bulk(t, small.side, large.side, 4<<20, false, time.Minute)
	}
	both()
	third := r.bootJumbo(r.attach("third", macC), macC, "10.77.0.12/24")
	before := third.Stats()
	netnstest.Bulk(t, large.side, third.side, 8<<20, false, time.Minute)
	if s := third.Stats(); (s.RxBytes-before.RxBytes)/max(1, s.Segments-before.Segments) < 6000 || s.Violations > 0 {
		t.Errorf("between VMs of 9000 there are no jumbo segments: %+v", s)
	}
	dropped := func(vm string, tx bool) uint64 {
		var st api.Stats
		r.json(&st, "stats", "--vm", vm)
		if tx {
			return st.VMs[0].TxDropped["bad_length"]
		}
		return st.VMs[0].Dropped["bad_length"]
	}
	in := r.net.A.Injector(t)
	frame := make([]byte, 14+jumboMTU)
	copy(frame, mac(t, macB))
	copy(frame[6:], r.net.A.MAC)
	copy(frame[12:], []byte{0x88, 0xb5}) // for experiments
	if err := in.Send(frame); err != nil {
		t.Fatal(err)
	}
	r.eventually("a frame of 9,014 bytes from the wire is counted", func() error { return atLeast(dropped("small", false), 1) })
	inject := func(from *guest, to string) {
		t.Helper()
		copy(frame, mac(t, to))
		copy(frame[6:], from.side.MAC)
		if err := from.side.Injector(t).Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	inject(large, macB)
	r.eventually("one from the VM beside it too", func() error { return atLeast(dropped("small", false), 2) })
	copy(frame[6:], r.net.B.MAC)
	if err := r.net.B.Injector(t).Send(frame); err != nil {
		t.Fatal(err)
	}
	r.eventually("one from the host too", func() error { return atLeast(dropped("small", false), 3) })
	for i, from := range []*netnstest.Side{r.net.A, r.net.B, large.side} { // to all: those who take it get it
		c := third.side.Capture(t)
		copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		copy(frame[6:], from.MAC)
		if err := from.Injector(t).Send(frame); err != nil {
			t.Fatal(err)
		}
		c.Until(5*time.Second, func(f netnstest.Frame) bool { return len(f.Data) == len(frame) && bytes.Equal(f.Data[:14], frame[:14]) })
		r.eventually("one to all too", func() error { return atLeast(dropped("small", false), uint64(4+i)) })
	}
	setMTU(t, small.side, jumboMTU) // of which nobody has told us
	inject(small, macA)
	r.eventually("what it sends beyond its MTU is counted", func() error { return atLeast(dropped("small", true), 1) })
	setMTU(t, small.side, 1500)
	r.replace()
	both()
}

func atLeast(n, want uint64) error {
	if n < want {
		return fmt.Errorf("%d, want %d", n, want)
	}
	return nil
}

// An MTU that grows to what the open sockets do not hold gives the interface back, with the reason, and its VMs come again with sockets that do.
// One that nothing holds leaves them waiting, and says so.
func TestAnMTUThatGrowsIsServedAgain(t *testing.T) {
	netnstest.Need(t, multiBuffer)
	r := newRig(t, netnstest.Options{NoIPv6: true})
	sock := r.attach("vm0", macA)
	setMTU(t, r.net.B, jumboMTU)
	r.eventually("the interface was given back", func() error {
		if !strings.Contains(r.log.String(), "the MTU is 9000 now, and what is open holds at most 1774") {
			return errNotYet
		}
		return nil
	})
	attached := func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Interfaces) == 1 && st.Interfaces[0].MTU == jumboMTU && len(st.Waiting) == 0 {
			return nil
		}
		return errNotYet
	}
	r.eventually("it is attached again", attached)
	setMTU(t, r.net.A, jumboMTU)
	g := r.bootJumbo(sock, macA, "10.77.0.10/24")
	r.mustMergeJumbo(g, 8<<20)
	for _, mtu := range []int{9100, 1500, jumboMTU} { // what is open holds them
		setMTU(t, r.net.A, mtu)
		setMTU(t, r.net.B, mtu)
		setMTU(t, g.side, mtu)
		r.eventually("the MTU is followed", func() error {
			var st api.Status
			if r.json(&st, "status"); len(st.Interfaces) != 1 || st.Interfaces[0].MTU != mtu || len(st.Waiting) > 0 {
				return errNotYet
			}
			return nil
		})
		netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, time.Minute)
		netnstest.Bulk(t, g.side, r.net.A, 4<<20, false, time.Minute)
	}
	g.calm(t)
	setMTU(t, r.net.B, 20000)
	r.eventually("the VM waits", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Waiting) == 1 && strings.Contains(st.Waiting[0].Cause, "16302 is the largest that works") {
			return nil
		}
		return errNotYet
	})
	setMTU(t, r.net.B, jumboMTU)
	r.eventually("it is attached once more", attached)
}

// A flood of jumbo frames, each of which takes several entries of the RX ring, holds no more than its VM's share of it: what comes for the VM
// beside it while the worker is behind finds room.
func TestAFloodOfJumboFramesLeavesTheNeighboursTheirs(t *testing.T) {
	r := jumboRig(t, netnstest.Options{NoIPv6: true})
	r.bootJumbo(r.attach("flooded", macA), macA, "10.77.0.10/24")
	r.boot(stackguest.Config{Socket: r.attach("honest", macB), MAC: mac(t, macB)})
	in := r.net.A.Injector(t)
	flood := make([]byte, 14+jumboMTU)
	copy(flood, mac(t, macA))
	copy(flood[6:], r.net.A.MAC)
	copy(flood[12:], []byte{0x88, 0xb5})
	const burst = 200
	before := r.reached("honest")
	r.frozen(func() {
		for range 2000 {
			if err := in.Send(flood); err != nil {
				t.Fatal(err)
			}
		}
		for range burst {
			if err := in.Send(probe(mac(t, macB), r.net.A.MAC, "x")); err != nil {
				t.Fatal(err)
			}
		}
	})
	r.eventually("nine tenths of them arrive", func() error { return atLeast(r.reached("honest")-before, burst*9/10) })
	var st api.Stats
	r.json(&st, "stats")
	q := st.Queues[r.net.B.Dev+"/0"]
	if st.Outcomes["rx_share"] < 1000 || q.RxRingFull+q.RxFillEmpty+q.RxNoBuffer+q.RxBroken != 0 {
		t.Errorf("%d above the share; %+v", st.Outcomes["rx_share"], q)
	}
}
