package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

// A tap VM's test runs over the feed that the machine has: the ring of /dev/vhost-net, or the packet socket. hostvm has one run of
// each.

const (
	toTap      = 16 << 20 // bytes
	fromTap    = 4 << 20
	mergedMean = 3000 // bytes of a mean frame: two segments. How many more there are is the sender's doing, which is slow in a VM
)

// longRun is how many bytes keep a transfer going through a restart of the controller.
func longRun() int64 {
	if netnstest.Emulated() {
		return 64 << 20
	}
	return 512 << 20
}

// bridge puts the uplink into a bridge, as on the usual libvirt host. The host's own addresses move there.
func (r *rig) bridge() {
	r.t.Helper()
	r.net.B.Do(r.t, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(br); err != nil {
			return err
		}
		up, err := netlink.LinkByName(r.net.B.Dev)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(up, br)
	})
}

// port adds an interface of the host to the bridge.
func (r *rig) port(dev string) {
	r.t.Helper()
	r.net.B.Do(r.t, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, br)
	})
}

// tapVM starts a VM on a tap of the host, which becomes a port of the bridge.
func (r *rig) tapVM(o tapvm.Options) *tapvm.VM {
	r.t.Helper()
	o.Host, o.Engine = r.net.B.NS, engine()
	vm := tapvm.Start(r.t, o)
	r.port(o.Tap)
	return vm
}

func engine() tapvm.Engine {
	if _, err := os.Stat("/dev/vhost-net"); err == nil {
		return tapvm.Vhost
	}
	return tapvm.Userspace
}

// oneTapVM is a rig with the bridge and one attached VM on it.
func oneTapVM(t *testing.T, o netnstest.Options, flags ...string) (*rig, *tapvm.VM) {
	t.Helper()
	r := newRig(t, o)
	return r, r.firstTapVM(flags...)
}

// firstTapVM is a VM on its tap, in a bridge with the uplink.
func (r *rig) firstTapVM(flags ...string) *tapvm.VM {
	r.t.Helper()
	r.bridge()
	vm := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(r.t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24"), IPv6: netip.MustParsePrefix("fd77::10/64")})
	r.attachTap("vm0", macA, flags...)
	return vm
}

func (r *rig) attachTap(tap, mac string, flags ...string) {
	r.t.Helper()
	r.must(append([]string{"attach", r.net.B.Dev, "--vm", tap, "--mac", mac, "--tap", tap}, flags...)...)
}

// merged sends bytes to a VM and fails the test unless they arrive in frames of merged segments.
func (r *rig) merged(from *netnstest.Side, vm *tapvm.VM, bytes int64, v6 bool) {
	r.t.Helper()
	before := vm.Stats()
	netnstest.Bulk(r.t, from, vm.Guest, bytes, v6, 3*time.Minute)
	s := vm.Stats()
	if mean := float64(s.Bytes-before.Bytes) / float64(max(1, s.Frames-before.Frames)); mean < mergedMean {
		r.t.Errorf("IPv6 %t: mean frame of %.0f bytes", v6, mean)
	}
}

// TCP from the wire reaches a VM as it is, on its own tap, in superframes; with the policy off it takes the kernel's path as if
// we were not there. What it sends is counted.
func TestTCPReachesATapInSuperframes(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(map[int]string{1: "one queue", 2: "two queues"}[queues], func(t *testing.T) {
			r, vm := oneTapVM(t, netnstest.Options{Queues: queues})
			for _, v6 := range []bool{false, true} {
				r.must("policy", "set", "vm0", "--coalesce", "on")
				r.merged(r.net.A, vm, toTap, v6)
				netnstest.Bulk(t, vm.Guest, r.net.A, fromTap, v6, 3*time.Minute)
				r.must("policy", "set", "vm0", "--coalesce", "off")
				var a, b api.Stats
				r.json(&a, "stats")
				netnstest.Bulk(t, r.net.A, vm.Guest, 4<<20, v6, 3*time.Minute)
				r.json(&b, "stats")
				if a.VMs[0].RxPackets != b.VMs[0].RxPackets {
					t.Errorf("IPv6 %t: %d packets came to us with the policy off", v6, b.VMs[0].RxPackets-a.VMs[0].RxPackets)
				}
			}
			var st api.Stats
			r.json(&st, "stats")
			explain(t, st)
			if s := st.VMs[0]; s.Superframes == 0 || s.FeedUnsent != 0 {
				t.Errorf("%+v", s)
			}
			r.bothWays()
			r.shows("running", map[tapvm.Engine]api.Feed{tapvm.Vhost: "vhost-net", tapvm.Userspace: "packet"}[engine()])
		})
	}
}

// bothWays fails the test unless flows lists a flow to the VM and one from it, with the bytes that travelled.
func (r *rig) bothWays() {
	r.t.Helper()
	var f api.Flows
	r.json(&f, "flows", "--vm", "vm0")
	got := map[api.Direction]uint64{}
	for _, flow := range f.Flows {
		got[flow.Direction] += flow.PayloadBytes
	}
	if got["to_guest"] < 2*toTap || got["to_wire"] < 2*fromTap || got["to_wire"] > 2*fromTap+1<<20 {
		r.t.Errorf("payload bytes by direction: %v", got)
	}
}

func (r *rig) shows(state api.PortState, feed api.Feed) {
	r.t.Helper()
	var st api.Status
	r.json(&st, "status")
	if p := st.Interfaces[0].Ports[0]; p.State != state || p.Feed != feed || (feed == "packet") != (p.FeedNote != "") {
		r.t.Errorf("%+v", p)
	}
}

// Switching a tap VM's policy under load, from the kernel's path to ours and back, loses nothing and repeats nothing.
func TestTogglesOfATapLoseNothing(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	r.toggle(vm.Guest, 32<<20)
	var st api.Stats
	r.json(&st, "stats")
	t.Logf("late packets: %d of %d", st.VMs[0].LatePackets, st.VMs[0].RxPackets)
}

// The traffic of a tap VM survives its controller: it goes on by the kernel's path, and the next controller takes it up again.
func TestTapTrafficSurvivesItsController(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	enough, sent := make(chan struct{}), make(chan error, 1)
	go func() {
		sent <- transfers(r.net.A, vm.Guest, enough)
	}()
	grown := func(what string) {
		t.Helper()
		from := vm.Stats().Bytes
		r.eventually(what, func() error {
			if vm.Stats().Bytes < from+4<<20 {
				return errNotYet
			}
			return nil
		})
	}
	grown("the transfer runs")
	r.kill()
	grown("the transfer goes on without a controller")
	r.start()
	var st api.Stats
	r.eventually("frames are merged again", func() error {
		r.json(&st, "stats")
		if len(st.VMs) != 1 || st.VMs[0].Superframes == 0 {
			return errNotYet
		}
		return nil
	})
	close(enough)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	r.must("detach", r.net.B.Dev)
	r.untouched(t)
	netnstest.Bulk(t, r.net.A, vm.Guest, 1<<20, false, time.Minute)
}

// transfers sends one long transfer after the other, until it is enough: how long a controller takes to start is another thing on each
// machine, and so is how much is sent meanwhile.
func transfers(from, to *netnstest.Side, enough <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for {
		sink, err := to.Listen(netip.AddrPortFrom(to.IPv4.Addr(), 0))
		if err != nil {
			return err
		}
		want, err := from.Send(ctx, sink.Addr, longRun())
		sink.Close()
		if err != nil {
			return err
		}
		if got, _, err := sink.Wait(ctx); err != nil || got != want {
			return fmt.Errorf("hashes %x and %x: %w", want[:4], got[:4], err)
		}
		select {
		case <-enough:
			return nil
		default:
		}
	}
}

// A guest that switches its offloads off still gets every byte, in frames that it can take, and is merged for again later.
func TestATapGuestMaySwitchItsOffloads(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	for _, o := range []tapvm.Offload{0, tapvm.CSUM, tapvm.CSUM | tapvm.TSO6, tapvm.AllOffloads} {
		if err := vm.SetOffload(o); err != nil {
			t.Fatal(err)
		}
		netnstest.Bulk(t, r.net.A, vm.Guest, 4<<20, false, time.Minute)
		netnstest.Bulk(t, r.net.A, vm.Guest, 4<<20, true, time.Minute)
	}
	r.eventually("merged for again, in both families", func() error {
		if p := r.firstPort(); p.Effective != api.ProfileGRO || !slices.Contains(p.Features, "GUEST_TSO4") {
			return errNotYet
		}
		return nil
	})
	r.merged(r.net.A, vm, 16<<20, false)
}

// Of two VMs on taps one can have coalescing off, and families and ports stay on the kernel's path one by one.
func TestTapPoliciesAreTheVMsOwn(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	other := r.tapVM(tapvm.Options{Tap: "vm1", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")})
	r.attachTap("vm1", macB, "--coalesce", "off")
	rx := func(vm string) uint64 {
		var st api.Stats
		r.json(&st, "stats", "--vm", vm)
		return st.VMs[0].RxPackets
	}
	netnstest.Bulk(t, r.net.A, other.Guest, 4<<20, false, time.Minute)
	if n := rx("vm1"); n != 0 {
		t.Errorf("%d packets of a VM with coalescing off came to us", n)
	}
	r.must("policy", "set", "vm0", "--ipv4", "off")
	netnstest.Bulk(t, r.net.A, vm.Guest, 1<<20, false, time.Minute)
	if n := rx("vm0"); n != 0 {
		t.Errorf("%d packets with IPv4 off", n)
	}
	netnstest.Bulk(t, r.net.A, vm.Guest, 1<<20, true, time.Minute)
	if rx("vm0") == 0 {
		t.Error("no IPv6 packet came to us")
	}
	r.must("policy", "reset", "vm0")
	sink := vm.Guest.Sink(t, netip.AddrPortFrom(vm.Guest.IPv4.Addr(), 5201))
	r.must("policy", "set", "vm0", "--exclude-port", "5201")
	from := rx("vm0")
	if _, err := r.net.A.Send(t.Context(), sink.Addr, 1<<20); err != nil {
		t.Fatal(err)
	}
	if n := rx("vm0"); n != from {
		t.Errorf("%d packets of an excluded port", n-from)
	}
}

// A tap that vanishes under load takes its VM off, and no other; when it is back the VM is served again.
func TestATapThatVanishesCostsOnlyItsVM(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	other := r.tapVM(tapvm.Options{Tap: "vm1", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")})
	r.attachTap("vm1", macB)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	sink := other.Guest.Sink(t, netip.AddrPortFrom(other.Guest.IPv4.Addr(), 0))
	go func() { _, _ = r.net.A.Send(ctx, sink.Addr, 1<<40) }() // ended by the tap's end
	r.eventually("the transfer runs", func() error {
		if other.Stats().Bytes < 1<<20 {
			return errNotYet
		}
		return nil
	})
	other.Kill()
	netnstest.Bulk(t, r.net.A, vm.Guest, 8<<20, false, time.Minute)
	r.eventually("the VM is shown as waiting, with the cause", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Waiting) != 1 || st.Waiting[0].VM != "vm1" || st.Waiting[0].Cause == "" {
			return errNotYet
		}
		return nil
	})
	again := r.tapVM(tapvm.Options{Tap: "vm1", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")})
	r.eventually("the VM is served again", func() error {
		var st api.Status
		if r.json(&st, "status"); len(st.Interfaces[0].Ports) != 2 {
			return errNotYet
		}
		return nil
	})
	r.merged(r.net.A, again, 8<<20, false)
}
