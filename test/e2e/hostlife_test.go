package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// With --no-host a VM and its host are apart, as they may be made while it runs; nothing of ours is on the host then.
func TestAVMWithoutItsHost(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{NoIPv6: true}, "--no-host")
	way := "rsc-" + r.net.B.Dev
	there := func() bool {
		return strings.Contains(r.net.B.Output(t, "ip", "-o", "link"), way)
	}
	reaches := func(want bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if !want {
			ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
		}
		sink := r.net.B.Sink(t, netip.AddrPortFrom(r.net.B.IPv4.Addr(), 0))
		defer sink.Close()
		if _, err := g.side.Send(ctx, sink.Addr, 1000); (err == nil) != want {
			t.Errorf("reaches its host: %v, want %t", err, want)
		}
	}
	reaches(false)
	if there() {
		t.Error("there is a device")
	}
	r.clean("without the host", r.net.B.Dev)
	netnstest.Bulk(t, g.side, r.net.A, 4<<20, false, time.Minute)
	r.must("policy", "set", "vm1", "--host", "on")
	reaches(true)
	if tcx, _, _ := r.hanging(r.net.B.Dev); !there() || !slices.Contains(tcx, "rsc_host_out") {
		t.Errorf("device %t, programs %v", there(), tcx)
	}
	r.must("policy", "set", "vm1", "--host", "off")
	if there() {
		t.Error("the device stays")
	}
	r.net.B.Output(t, "ip", "neigh", "flush", "dev", r.net.B.Dev)
	reaches(false)
	r.clean("without the host again", r.net.B.Dev)
	var st api.Status
	if r.json(&st, "status"); st.Interfaces[0].Ports[0].Policy.Host {
		t.Error("status says otherwise")
	}
}

// A change of hands and a crash of the process that works are nothing to a transfer between the host and a VM, and a controller that is
// killed for good leaves nothing on the host.
func TestTheHostStaysANeighbourThroughChangesOfHands(t *testing.T) {
	netnstest.Need(t, netnstest.TCX) // filters, which older kernels have in its place, stay where a process and its keeper are killed (`doctor`: tap.leftover)
	r, g := hostRig(t, netnstest.Options{NoIPv6: true, Queues: 2})
	during := func(what string, fn func()) {
		t.Helper()
		for _, way := range [][2]*netnstest.Side{{r.net.B, g.side}, {g.side, r.net.B}} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(300 * time.Millisecond)
				fn()
			}()
			netnstest.Bulk(t, way[0], way[1], 256<<20, false, 2*time.Minute)
			<-done
		}
		t.Log(what)
	}
	during("replaced", func() { r.replace() })
	during("crashed", r.crash)
	time.Sleep(2500 * time.Millisecond) // slower than a crash loop
	was := r.worker()
	if err := syscall.Kill(was, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.net.B.Output(t, "ip", "link", "delete", "rsc-"+r.net.B.Dev) // while nobody looks: the next process makes another
	if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	during("without a device", func() {})
	if g.Err() != nil {
		t.Error(g.Err())
	}
	r.nothingLeft("stopped", r.stop)
	r.start()
	r.eventually("it is attached again", func() error {
		if tcx, _, _ := r.hanging(r.net.B.Dev); !slices.Contains(tcx, "rsc_host_out") {
			return errNotYet
		}
		return nil
	})
	r.nothingLeft("killed, keeper and all", r.kill)
	r.start()
}

// What the host and a VM send to each other while the controller is replaced arrives, each frame once.
func TestNoFrameOfTheHostIsLostOrDoubledByAReplacement(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{NoIPv6: true})
	for _, c := range []struct {
		name     string
		from, to *netnstest.Side
	}{{"to the VM", r.net.B, g.side}, {"to the host", g.side, r.net.B}} {
		stop := make(chan struct{})
		out := r.trainFrom(c.from, c.to, stop)
		for range 2 {
			time.Sleep(200 * time.Millisecond)
			r.replace()
		}
		time.Sleep(200 * time.Millisecond)
		close(stop)
		t.Log(c.name)
		(<-out).once(t, 0)
	}
}

// nothingLeft ends the controller and looks that nothing between the host and its VMs stays on the host.
func (r *rig) nothingLeft(when string, end func()) {
	r.t.Helper()
	end()
	r.eventually(when, func() error {
		if all := r.net.B.Output(r.t, "ip", "-o", "link"); strings.Contains(all, "rsc-") {
			return fmt.Errorf("left: %s", all)
		}
		if tcx, filters, qdisc := r.hanging(r.net.B.Dev); len(tcx)+len(filters) > 0 || qdisc {
			return fmt.Errorf("left: %v %v %t", tcx, filters, qdisc)
		}
		return nil
	})
}

// Where the device between host and VMs cannot be made, the VM is served without its host, and whoever looks is told. A device that somebody
// deletes is made anew.
func TestWithoutTunAVMIsServedWithoutItsHost(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF, netnstest.TAP, netnstest.Tool("unshare"))
	r := &rig{t: t, net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir()}
	r.under = []string{"unshare", "--mount", "sh", "-c", `mount --bind /dev/null /dev/net/tun && exec "$@"`, "sh"}
	r.begin()
	socket := r.dir + "/vm1.sock"
	out := r.must("attach", r.net.B.Dev, "--vm", "vm1", "--mac", macA, "--vhost-user", socket)
	if !strings.Contains(out, "warning: the host is no neighbour") || !strings.Contains(out, "/dev/net/tun") {
		t.Errorf("attach says %s", out)
	}
	g := r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)}, "10.77.0.50/24")
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, time.Minute)
	var st api.Status
	if r.json(&st, "status"); !strings.Contains(fmt.Sprint(st.Interfaces[0].Warnings), "no neighbour") {
		t.Errorf("status says %v", st.Interfaces[0].Warnings)
	}
	r.stop()
	r.under = nil
	r.start()
	g = r.boot(stackguest.Config{Socket: socket, MAC: mac(t, macA)}, "10.77.0.50/24")
	netnstest.Bulk(t, r.net.B, g.side, 4<<20, false, time.Minute)
	way := "rsc-" + r.net.B.Dev
	r.net.B.Output(t, "ip", "link", "delete", way)
	r.eventually("the device is made anew", func() error {
		if all := r.net.B.Output(t, "ip", "-o", "link"); !strings.Contains(all, "rsc-") {
			return errNotYet
		}
		return nil
	})
	netnstest.Bulk(t, g.side, r.net.B, 4<<20, false, time.Minute)
}

// With somebody else's XDP program on the interface the host is a neighbour as ever.
func TestTheHostIsANeighbourBesideSomebodyElsesProgram(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	sock, _ := newStranger(r, 4).attach("vm1", macA, "--queue", "0")
	g := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.77.0.50/24")
	netnstest.Bulk(t, r.net.B, g.side, 8<<20, false, time.Minute)
	netnstest.Bulk(t, g.side, r.net.B, 8<<20, false, time.Minute)
	netnstest.Bulk(t, g.side, r.net.A, 4<<20, false, time.Minute)
	if s := r.statsOf("vm1"); s.ToHost < 8<<20/1500 || s.FromHost < 8<<20/1500 {
		t.Errorf("%d packets to the host, %d from it", s.ToHost, s.FromHost)
	}
}

// The host on a bond, and a VLAN device on it, are neighbours of the VMs in their VLANs, through a fail-over, and frames of one VLAN are in no other.
func TestABondsHostIsANeighbour(t *testing.T) {
	netnstest.Need(t, netnstest.Bonding, netnstest.VLAN)
	r := bondRig(t, "active-backup", "type bridge", 1, 1)
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macA), MAC: mac(t, macA)}, "10.77.0.50/24")
	seven := r.boot(stackguest.Config{Socket: r.attach("vm2", macB, "--vlan", "7"), MAC: mac(t, macB)}, "10.78.0.50/24")
	r.net.B.Output(t, "sh", "-ec", "ip link add link bond0 name bond0.7 type vlan id 7; ip link set bond0.7 up; ip addr add 10.78.0.2/24 dev bond0.7")
	tagged := *r.net.B
	tagged.Dev, tagged.IPv4 = "bond0.7", netip.MustParsePrefix("10.78.0.2/24")
	for _, c := range []struct{ a, b *netnstest.Side }{{r.net.B, g.side}, {g.side, r.net.B}, {&tagged, seven.side}, {seven.side, &tagged}, {r.net.A, g.side}, {g.side, r.net.A}} {
		netnstest.Bulk(t, c.a, c.b, 4<<20, false, time.Minute)
	}
	e := ears{"plain": g.side.Capture(t), "seven": seven.side.Capture(t), "wire": r.net.A.Capture(t)}
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	g.side.Inject(t, netnstest.Ethernet(everybody, g.side.MAC, onceType, []byte("of the plain one")))
	if got := e.hear("of the plain one"); got["seven"] != 0 || got["plain"] != 0 || got["wire"] != 1 {
		t.Errorf("heard by %v", got)
	}
	r.net.B.Inject(t, netnstest.Ethernet(everybody, r.net.B.MAC, onceType, []byte("of the host")))
	if got := e.hear("of the host"); got["seven"] != 0 || got["plain"] != 1 || got["wire"] != 1 {
		t.Errorf("heard by %v", got)
	}
	r.pull(0, true)
	r.membersAre("eth0 down, eth1 active")
	netnstest.Bulk(t, r.net.B, g.side, 4<<20, false, time.Minute)
	netnstest.Bulk(t, g.side, r.net.B, 4<<20, false, time.Minute)
}

// A host that floods a VM, and a storm between two of its bridges, cost frames, which are counted, and no more: the wire's transfers go on
// meanwhile, and the host is reached behind it.
func TestAHostThatFloodsIsBounded(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true, Queues: 2})
	host := r.overBridgeOnly()
	r.net.B.Output(t, "sh", "-ec", fmt.Sprintf("ip addr flush dev %s; ip addr add %s dev br0", r.net.B.Dev, r.net.B.IPv4))
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macA), MAC: mac(t, macA)}, "10.77.0.50/24")
	netnstest.Bulk(t, host, g.side, 4<<20, false, time.Minute)

	stop, ended := make(chan struct{}), make(chan int)
	go func() {
		in, n := host.Injector(t), 0
		frames := [][]byte{
			netnstest.Ethernet(g.side.MAC, host.MAC, onceType, bytes.Repeat([]byte("flood"), 280)),
			netnstest.Ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, host.MAC, onceType, bytes.Repeat([]byte("flood"), 280)),
		}
		for ; ; n++ {
			select {
			case <-stop:
				ended <- n
				return
			default:
				_ = in.Send(frames[n%len(frames)]) // a full queue is a flood's lot
			}
		}
	}()
	netnstest.Bulk(t, r.net.A, g.side, 8<<20, false, time.Minute)
	close(stop)
	t.Logf("%d frames of a flood", <-ended)
	netnstest.Bulk(t, g.side, host, 4<<20, false, time.Minute)

	before := r.statsOf("vm1")
	r.net.B.Output(t, "sh", "-ec", `
		ip link add br1 type bridge; ip link set br1 up
		for i in 0 1; do ip link add l$i type veth peer name m$i; ip link set l$i master br0; ip link set m$i master br1; ip link set l$i up; ip link set m$i up; done`)
	g.side.Inject(t, netnstest.Ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, g.side.MAC, onceType, []byte("storm")))
	time.Sleep(300 * time.Millisecond)
	r.net.B.Output(t, "ip", "link", "delete", "l0")
	s := r.statsOf("vm1")
	t.Logf("the VM's own frame came back %d times", s.Dropped["hairpin"]-before.Dropped["hairpin"])
	if s.Dropped["hairpin"] == before.Dropped["hairpin"] {
		t.Error("no storm: nothing was shown")
	}
	netnstest.Bulk(t, g.side, host, 4<<20, false, time.Minute)
	netnstest.Bulk(t, host, g.side, 4<<20, false, time.Minute)
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}
