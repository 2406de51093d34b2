package bpf_test

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

var vmMAC = net.HardwareAddr{0x02, 0x52, 0, 0, 0, 0x50}

// hostRig is an interface (B of the pair) whose host is the neighbour of a VM.
type hostRig struct {
	*netnstest.Network
	cuts   bool // as a kernel before 6.2 does
	way    *netdev.Way
	prog   *bpf.HostProgram
	reader *tap.HostReader
	sender *tap.Uplink
}

func newHostRig(t *testing.T, attach func(*bpf.HostProgram) error, vlans ...uint16) *hostRig {
	t.Helper()
	return new(hostRig).begin(t, attach, vlans...)
}

func (r *hostRig) begin(t *testing.T, attach func(*bpf.HostProgram) error, vlans ...uint16) *hostRig {
	t.Helper()
	netnstest.Need(t, netnstest.Device("/dev/net/tun"))
	r.Network = netnstest.Pair(t, netnstest.Options{StaticNeighbors: true})
	r.B.Do(t, func() (err error) {
		if r.way, err = netdev.OpenWay(r.B.Dev, r.B.Index); err != nil {
			return err
		}
		t.Cleanup(func() { r.way.Close() })
		if r.prog, err = bpf.LoadHost(r.options()); err != nil {
			return err
		}
		t.Cleanup(func() { _ = r.B.NS.Do(r.prog.Close) })
		if err := attach(r.prog); err != nil {
			return err
		}
		if r.reader, err = tap.OpenHostReader(r.way.Index); err != nil {
			return err
		}
		t.Cleanup(func() { r.reader.Close() })
		if r.sender, err = tap.OpenUplink(r.way.Index); err != nil {
			return err
		}
		t.Cleanup(func() { r.sender.Close() })
		if err := r.sender.SetMark(meta.HostMark); err != nil {
			return err
		}
		var rows []bpf.PortKey
		for _, v := range append(vlans, 0) {
			rows = append(rows, bpf.PortKey{VLAN: v, MAC: [6]byte(vmMAC)})
		}
		return r.prog.SetNeighbours(rows)
	})
	return r
}

func (r *hostRig) options() bpf.HostOptions {
	return bpf.HostOptions{Uplink: r.B.Index, Way: r.way.Index, TakesUSO: r.way.TakesUSO && !r.cuts}
}

// read returns the next frame of the host's that is match.
func (r *hostRig) read(match func(f *tap.HostFrame) bool) (found []tap.HostFrame) {
	var frames [tap.HostBatch]tap.HostFrame
	for quiet := 0; quiet < 20; {
		n, _ := r.reader.Recv(&frames)
		if n == 0 {
			quiet++
			time.Sleep(5 * time.Millisecond)
		}
		for i := range frames[:n] {
			if f := frames[i]; match(&f) {
				f.Data = bytes.Clone(f.Data)
				found = append(found, f)
			}
		}
	}
	return found
}

// bothWays runs fn with the programs attached by each way that the kernel has.
func bothWays(t *testing.T, fn func(t *testing.T, attach func(*bpf.HostProgram) error)) {
	for name, attach := range map[string]func(*bpf.HostProgram) error{"tcx": (*bpf.HostProgram).Attach, "clsact": (*bpf.HostProgram).AttachFilters} {
		t.Run(name, func(t *testing.T) { fn(t, attach) })
	}
}

const hostType = 0x88b5

func typed(b []byte) bool { return len(b) > 14 && b[12] == 0x88 && b[13] == 0xb5 }

func TestTheHostsFramesForAVMAreHandedOver(t *testing.T) {
	bothWays(t, func(t *testing.T, attach func(*bpf.HostProgram) error) {
		r := newHostRig(t, attach, 42)
		wire := r.A.Capture(t)
		plain := netnstest.Ethernet(vmMAC, r.B.MAC, hostType, []byte("to the VM"))
		group := netnstest.Ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, r.B.MAC, hostType, []byte("to all"))
		lldp := netnstest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, r.B.MAC, hostType, []byte("to the switch"))
		r.B.Inject(t,
			plain, group, lldp, netnstest.Tag(plain, 42|3<<13), netnstest.Tag(plain, 43), netnstest.Tag(netnstest.Tag(plain, 7), 42),
			netnstest.Tag(group, 43), netnstest.Ethernet(r.A.MAC, r.B.MAC, hostType, []byte("to the wire")))
		got := r.read(func(f *tap.HostFrame) bool { return typed(f.Data) })
		if len(got) != 3 || !bytes.Equal(got[0].Data, plain) || !bytes.Equal(got[1].Data, group) || !bytes.Equal(got[2].Data, plain) ||
			got[0].Tagged || got[1].Tagged || !got[2].Tagged || got[2].TCI != 42|3<<13 {
			t.Errorf("handed over: %+v", got)
		}
		var onWire int
		for _, f := range wire.Drain(100 * time.Millisecond) {
			if bytes.HasPrefix(f.Data, vmMAC) && !f.Tagged {
				t.Errorf("on the wire: %x", f.Data)
			}
			if typed(f.Data) || f.Tagged {
				onWire++
			}
		}
		if onWire != 6 { // the group frames, the switch's, VLAN 43's, two tags, the wire's
			t.Errorf("%d frames on the wire", onWire)
		}
		if out, err := r.prog.Outcomes(); err != nil || out["to_vm"] != 2 || out["group_to_vm"] < 1 || out["lost"] != 0 {
			t.Errorf("%v, %v", out, err)
		}
	})
}

// A VM's frame comes in by the uplink for all of the host, and its mark is seen by packet sockets alone. The way itself says nothing.
func TestAVMsFramesComeInByTheUplink(t *testing.T) {
	bothWays(t, func(t *testing.T, attach func(*bpf.HostProgram) error) {
		r := newHostRig(t, attach)
		var group *netdev.McastSocket
		r.B.Do(t, func() (err error) { group, err = netdev.OpenMulticast(r.B.Index); return err })
		defer group.Close()
		seen, wire := r.B.Capture(t), r.A.Capture(t)
		frames := [][]byte{
			netnstest.Ethernet(r.B.MAC, vmMAC, hostType, []byte("to the host")),
			netnstest.Ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, vmMAC, hostType, []byte("to all")),
		}
		for _, f := range frames {
			if !r.sender.Add(&virtio.Frame{Frags: [][]byte{f}}) {
				t.Fatal("no room")
			}
		}
		if n, err := r.sender.Send(); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		var got [][]byte
		for _, f := range seen.Drain(100 * time.Millisecond) {
			if typed(f.Data) {
				got = append(got, f.Data)
			}
		}
		if len(got) != 2 || !bytes.Equal(got[0], frames[0]) || !bytes.Equal(got[1], frames[1]) {
			t.Errorf("the uplink received %x", got)
		}
		if f, _, _, err := group.Recv(make([]byte, 2048)); err == nil && typed(f) {
			t.Errorf("the group socket has a VM's own frame: %x", f)
		}
		if back := r.read(func(f *tap.HostFrame) bool { return typed(f.Data) }); len(back) != 0 {
			t.Errorf("it comes back: %+v", back)
		}
		for _, f := range wire.Drain(50 * time.Millisecond) {
			if typed(f.Data) {
				t.Errorf("on the wire: %x", f.Data)
			}
		}
	})
}

// TCP between the host and a VM, which is a stack behind another veth: superframes reach both ends whole.
func TestSuperframesCrossWholeBothWays(t *testing.T) {
	for name, native := range map[string]bool{"native XDP": true, "generic XDP": false} {
		t.Run(name, func(t *testing.T) {
			r := newHostRig(t, (*bpf.HostProgram).Attach)
			r.B.Do(t, func() error {
				xdp, err := bpf.Load(bpf.LoadOptions{Ifindex: r.B.Index, Queues: 1, Native: native})
				if err != nil {
					return err
				}
				t.Cleanup(func() { xdp.Close() })
				return xdp.Attach(native)
			})
			superframesCross(t, r)
		})
	}
}

// neighbour says where an address is.
func neighbour(t *testing.T, s *netnstest.Side, ip string, mac net.HardwareAddr) {
	t.Helper()
	s.Do(t, func() error {
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: s.Index, State: unix.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: mac})
	})
}

func superframesCross(t *testing.T, r *hostRig) {
	t.Helper()
	vm := netnstest.Pair(t, netnstest.Options{StaticNeighbors: true, KeepTSO: true, KeepTxChecksum: true, MACA: vmMAC, MACB: net.HardwareAddr{2, 0, 0, 0, 0, 0xc}})
	// vm.A is the VM, vm.B its plug: what the host sends goes in there, and what comes out there goes to the host.
	var in *tap.Uplink
	var out *tap.HostReader
	vm.B.Do(t, func() (err error) {
		if in, err = tap.OpenUplink(vm.B.Index); err == nil {
			out, err = tap.OpenHostReader(vm.B.Index)
		}
		return err
	})
	r.B.SetOffload(t, "tx-checksumming", true)
	r.B.SetOffload(t, "tx-tcp-segmentation", true)
	// Both pairs have 10.77.0.1 and .2: the VM is .1 at a plug whose .2 stands for the host.
	neighbour(t, r.B, "10.77.0.1", vmMAC)
	neighbour(t, vm.A, "10.77.0.2", r.B.MAC)
	var longest [2]int
	var wg sync.WaitGroup
	stop := make(chan struct{})
	ferry := func(i int, from *tap.HostReader, to *tap.Uplink) {
		defer wg.Done()
		var frames [tap.HostBatch]tap.HostFrame
		for {
			n, _ := from.Recv(&frames)
			for k := range frames[:n] {
				f := &frames[k]
				longest[i] = max(longest[i], len(f.Data))
				if !to.Add(&virtio.Frame{Hdr: f.Hdr, Frags: [][]byte{f.Data}}) {
					t.Error("no room")
				}
			}
			if n > 0 {
				_, _ = to.Send()
				continue
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}
	wg.Add(2)
	go ferry(0, r.reader, in)
	go ferry(1, out, r.sender)
	for _, way := range []struct{ from, to *netnstest.Side }{{r.B, vm.A}, {vm.A, r.B}} {
		netnstest.Bulk(t, way.from, way.to, 20<<20, false, 30*time.Second) // which compares hashes
	}
	close(stop)
	wg.Wait()
	t.Logf("the longest frames: %d bytes to the VM, %d to the host", longest[0], longest[1])
	if longest[0] < 10000 || longest[1] < 10000 {
		t.Errorf("the longest frames are of %d bytes to the VM, %d to the host", longest[0], longest[1])
	}
}

// Another process goes on with the programs, and with what waits in the socket; the one before that leaves takes nothing along.
func TestAnHeirGoesOnWithTheHostsPrograms(t *testing.T) {
	for name, same := range map[string]bool{"same version": true, "another": false} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, attach func(*bpf.HostProgram) error) { heirGoesOn(t, attach, same) })
		})
	}
}

func heirGoesOn(t *testing.T, attach func(*bpf.HostProgram) error, same bool) {
	t.Helper()
	r := newHostRig(t, attach)
	frame := netnstest.Ethernet(vmMAC, r.B.MAC, hostType, []byte("to the VM"))
	group := netnstest.Ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, r.B.MAC, hostType, []byte("to all"))
	r.B.Inject(t, frame)
	parts, err := r.prog.Parts()
	if err != nil {
		t.Fatal(err)
	}
	dup := func(all map[string]int) map[string]int {
		out := map[string]int{}
		for name, fd := range all {
			if out[name], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	var heir *bpf.HostProgram
	r.B.Do(t, func() error {
		if !same {
			parts.Object = "of another version"
		}
		heir, err = bpf.AdoptHost(r.options(),
			bpf.HostParts{Object: parts.Object, Programs: dup(parts.Programs), Links: dup(parts.Links), Maps: dup(parts.Maps)})
		if err != nil {
			return err
		}
		return heir.TakePlace()
	})
	if err := r.prog.Release(); err != nil {
		t.Error(err)
	}
	r.B.Inject(t, frame, group)
	if got := r.read(func(f *tap.HostFrame) bool { return typed(f.Data) }); len(got) != 3 {
		t.Errorf("handed over: %d frames, not one each", len(got))
	}
	if out, err := heir.Outcomes(); err != nil || out["to_vm"] != 2 {
		t.Errorf("%v, %v", out, err)
	}
	r.B.Do(t, func() error { return heir.SetNeighbours(nil) })
	r.B.Inject(t, frame, group)
	if got := r.read(func(f *tap.HostFrame) bool { return typed(f.Data) }); len(got) != 0 {
		t.Errorf("to nobody: %+v", got)
	}
	r.B.Do(t, heir.Close)
	if left := r.B.Output(t, "tc", "filter", "show", "dev", r.B.Dev, "egress"); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
	r.prog = heir // closed twice
}

func TestNetdevKnowsTheHostsProgramsByName(t *testing.T) {
	if netdev.HostOutName != bpf.RscHostProgRscHostOut || netdev.HostInName != bpf.RscHostProgRscHostIn {
		t.Errorf("%s and %s are not the programs' names", netdev.HostOutName, netdev.HostInName)
	}
}

// What a process that was killed left by filters is found and removed, with the qdisc that it had made; a stranger's filter stays.
func TestWhatADeadHostProgramLeftIsRemoved(t *testing.T) {
	r := newHostRig(t, (*bpf.HostProgram).AttachFilters)
	if err := r.prog.Release(); err != nil { // as a kill does
		t.Fatal(err)
	}
	r.B.Do(t, func() error {
		programs, err := bpf.HostFilters(r.B.Index)
		if err != nil || len(programs) != 2 {
			t.Errorf("%v, %v", programs, err)
		}
		return bpf.RemoveStaleHost(r.B.Index)
	})
	if left := r.B.Output(t, "tc", "qdisc", "show", "dev", r.B.Dev); bytes.Contains([]byte(left), []byte("clsact")) {
		t.Errorf("left: %s", left)
	}
	var err error
	r.B.Do(t, func() error {
		r.prog, err = bpf.LoadHost(r.options())
		return err
	})
}

func TestAHostProgramThatSomebodyTakesOffIsMissed(t *testing.T) {
	bothWays(t, func(t *testing.T, attach func(*bpf.HostProgram) error) {
		r := newHostRig(t, attach)
		if !r.prog.Hangs() {
			t.Fatal("it does not hang")
		}
		parts, err := r.prog.Parts()
		if err != nil {
			t.Fatal(err)
		}
		if id := parts.IDs["link."+bpf.RscHostProgRscHostOut]; id != 0 {
			l, err := link.NewFromID(link.ID(id))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
		} else {
			r.B.Output(t, "tc", "filter", "delete", "dev", r.B.Dev, "egress")
		}
		r.B.Do(t, func() error {
			if r.prog.Hangs() {
				t.Error("nothing is missed")
			}
			return nil
		})
	})
}
