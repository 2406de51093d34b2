package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// statsOf are a VM's counters.
func (r *rig) statsOf(vm string) api.VMStats {
	r.t.Helper()
	var st api.Stats
	r.json(&st, "stats")
	for _, v := range st.VMs {
		if v.VM == vm {
			if st.Unexplained != 0 {
				r.t.Errorf("unexplained %d", st.Unexplained)
			}
			return v
		}
	}
	r.t.Fatalf("no VM %s", vm)
	return api.VMStats{}
}

// hostRig is a rig with a VM, whose addresses are in the host's network.
func hostRig(t *testing.T, o netnstest.Options, flags ...string) (*rig, *guest) {
	t.Helper()
	r := newRig(t, o)
	return r, r.boot(stackguest.Config{Socket: r.attach("vm1", macA, flags...), MAC: mac(t, macA)}, "10.77.0.50/24", "fd77::50/64")
}

// generic makes native XDP impossible: on a veth it wants as many receive queues as its peer sends by.
func (r *rig) generic() {
	r.t.Helper()
	r.net.B.Output(r.t, "ethtool", "-L", r.net.B.Dev, "rx", "1")
}

// overBridge moves the host's addresses from the uplink to the bridge that it is in, as on the usual libvirt host, and returns the host as
// whoever speaks from there sees it.
func (r *rig) overBridge() *netnstest.Side {
	r.t.Helper()
	r.bridge()
	s := *r.net.B
	s.Dev = "br0"
	r.net.B.Do(r.t, func() error {
		up, err := netlink.LinkByName(r.net.B.Dev)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		s.Index, s.MAC = br.Attrs().Index, br.Attrs().HardwareAddr
		for _, p := range []netip.Prefix{s.IPv4, s.IPv6} {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			if p.Addr().Is6() {
				a.Flags = 0x02 // IFA_F_NODAD
			}
			if err := errors.Join(netlink.AddrDel(up, a), netlink.AddrAdd(br, a)); err != nil {
				return err
			}
		}
		return nil
	})
	return &s
}

// The host and a VM find one another by ARP and ND and send to each other, in both families, over the interface itself and over a bridge that
// it is in, with native and generic XDP: what they send arrives as it is, in frames far longer than the MTU.
func TestTheHostAndAVMAreNeighbours(t *testing.T) {
	for _, c := range []struct {
		name            string
		bridge, generic bool
	}{{"native", false, false}, {"generic", false, true}, {"bridge", true, false}, {"bridge generic", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, netnstest.Options{Queues: 2})
			if c.generic {
				r.generic()
			}
			host := r.net.B
			if c.bridge {
				host = r.overBridge()
			}
			g := r.boot(stackguest.Config{Socket: r.attach("vm1", macA), MAC: mac(t, macA)}, "10.77.0.50/24", "fd77::50/64")
			const size = 24 << 20
			for _, v6 := range []bool{false, true} {
				for _, toVM := range []bool{true, false} {
					before, seen := r.statsOf("vm1"), g.Stats()
					from, to := g.side, host
					if toVM {
						from, to = host, g.side
					}
					begin := time.Now()
					netnstest.Bulk(t, from, to, size, v6, time.Minute)
					took := time.Since(begin)
					s, got := r.statsOf("vm1"), g.Stats()
					packets, frames := s.ToHost-before.ToHost, s.TxFrames-before.TxFrames
					if toVM {
						packets, frames = s.FromHost-before.FromHost, got.DataFrames-seen.DataFrames
					}
					t.Logf("to the VM %t, IPv6 %t: %d packets in %d frames, %d MB/s", toVM, v6, packets, frames, int(size/took.Seconds()/1e6))
					if packets < size/1500 || frames > packets/3 {
						t.Errorf("to the VM %t, IPv6 %t: %d packets in %d frames", toVM, v6, packets, frames)
					}
				}
			}
			netnstest.Bulk(t, r.net.A, g.side, 8<<20, false, time.Minute) // the wire is as before
			netnstest.Bulk(t, g.side, r.net.A, 8<<20, true, time.Minute)
			if err := g.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A VM on vhost-user and one on a tap in the uplink's bridge, attached or not, send to each other.
func TestAVMReachesOneOnATapInTheUplinksBridge(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{Queues: 2})
	g := r.boot(stackguest.Config{Socket: r.attach("vm1", macB), MAC: mac(t, macB)}, "10.77.0.50/24", "fd77::50/64")
	const size = 16 << 20
	for _, attached := range []bool{true, false} {
		if !attached {
			r.must("detach", r.net.B.Dev, "--vm", "vm0")
		}
		for _, v6 := range []bool{false, true} {
			before, tapBefore, seen := r.statsOf("vm1"), vm.Stats(), g.Stats()
			netnstest.Bulk(t, g.side, vm.Guest, size, v6, time.Minute)
			netnstest.Bulk(t, vm.Guest, g.side, size, v6, time.Minute)
			s, at, got := r.statsOf("vm1"), vm.Stats(), g.Stats()
			if s.ToHost-before.ToHost < size/1500 || s.FromHost-before.FromHost < size/1500 {
				t.Errorf("attached %t: %d packets there, %d back", attached, s.ToHost-before.ToHost, s.FromHost-before.FromHost)
			}
			there, back := (at.Bytes-tapBefore.Bytes)/max(1, at.Frames-tapBefore.Frames), size/max(1, got.DataFrames-seen.DataFrames)
			t.Logf("attached %t, IPv6 %t: mean frames of %d and %d bytes", attached, v6, there, back)
			if there < mergedMean || back < mergedMean {
				t.Errorf("attached %t, IPv6 %t: mean frames of %d and %d bytes", attached, v6, there, back)
			}
		}
	}
}

const onceType = 0x88b6 // local experimental EtherType (IEEE 802)

// ears are captures at places where a group frame may arrive.
type ears map[string]*netnstest.Capture

// hear returns how often each place heard a frame with that text since the last time.
func (e ears) hear(text string) map[string]int {
	out := map[string]int{}
	for name, c := range e {
		for _, f := range c.Drain(150 * time.Millisecond) {
			if bytes.Contains(f.Data, []byte(text)) {
				out[name]++
			}
		}
	}
	return out
}

// Broadcast and multicast of each arrive at each once, whoever sends, with native and generic XDP, with and without a bridge on top.
func TestGroupFramesArriveOnceEverywhere(t *testing.T) {
	for _, c := range []struct {
		name            string
		bridge, generic bool
	}{{"native", false, false}, {"generic", false, true}, {"bridge", true, false}, {"bridge generic", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, netnstest.Options{NoIPv6: true})
			if c.generic {
				r.generic()
			}
			host := r.net.B
			at := map[string]*netnstest.Side{"wire": r.net.A}
			if c.bridge {
				host = r.overBridgeOnly()
				vm := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.10/24")})
				at["tap VM"] = vm.Guest
			}
			at["host"] = host
			for i, hw := range []string{macA, "52:54:00:00:00:0d"} {
				name := fmt.Sprintf("vm%d", i+1)
				at[name] = r.boot(stackguest.Config{Socket: r.attach(name, hw), MAC: mac(t, hw)}, fmt.Sprintf("10.77.0.5%d/24", i)).side
			}
			e := ears{}
			for name, s := range at {
				e[name] = s.Capture(t)
			}
			e.hear("")
			for from, s := range at {
				for _, dst := range []net.HardwareAddr{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0x33, 0x33, 0xff, 1, 2, 3}, {1, 0, 0x5e, 0, 0, 251}} {
					text := fmt.Sprintf("%s to %s", from, dst)
					s.Inject(t, netnstest.Ethernet(dst, s.MAC, onceType, []byte(text)))
					heard := e.hear(text)
					for name := range at {
						want := 1
						if name == from {
							want = 0
						}
						if heard[name] != want {
							t.Errorf("%s: %s heard it %d times", text, name, heard[name])
						}
					}
				}
			}
		})
	}
}

// overBridgeOnly is overBridge for a host without IPv6.
func (r *rig) overBridgeOnly() *netnstest.Side {
	r.t.Helper()
	r.bridge()
	s := *r.net.B
	s.Dev = "br0"
	r.net.B.Do(r.t, func() error {
		br, err := netlink.LinkByName("br0")
		if err == nil {
			s.Index, s.MAC = br.Attrs().Index, br.Attrs().HardwareAddr
		}
		return err
	})
	return &s
}

// Frames of one VLAN never reach another: a VM with a VLAN and its host speak in tagged frames.
func TestAVLANIsTheHostsToo(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	seven := r.boot(stackguest.Config{Socket: r.attach("vm1", macA, "--vlan", "7"), MAC: mac(t, macA)}, "10.78.0.50/24").side
	plain := r.boot(stackguest.Config{Socket: r.attach("vm2", macB), MAC: mac(t, macB)}, "10.77.0.51/24").side
	e := ears{"seven": seven.Capture(t), "plain": plain.Capture(t)}
	host := r.net.B.Capture(t)
	for _, tagged := range []bool{true, false} {
		for _, dst := range []net.HardwareAddr{seven.MAC, plain.MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
			text := fmt.Sprintf("tagged %t to %s", tagged, dst)
			f := netnstest.Ethernet(dst, r.net.B.MAC, onceType, []byte(text))
			if tagged {
				f = netnstest.Tag(f, 7)
			}
			r.net.B.Inject(t, f)
			want := map[string]int{}
			if group := dst[0]&1 != 0; tagged && (group || bytes.Equal(dst, seven.MAC)) {
				want["seven"] = 1
			} else if !tagged && (group || bytes.Equal(dst, plain.MAC)) {
				want["plain"] = 1
			}
			if got := e.hear(text); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: heard by %v, want %v", text, got, want)
			}
		}
	}
	for _, c := range []struct {
		side *netnstest.Side
		tci  uint16
	}{{seven, 7}, {plain, 0}} {
		for _, dst := range []net.HardwareAddr{r.net.B.MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
			text := fmt.Sprintf("from VLAN %d to %s", c.tci, dst)
			c.side.Inject(t, netnstest.Ethernet(dst, c.side.MAC, onceType, []byte(text)))
			f := host.Until(5*time.Second, func(f netnstest.Frame) bool { return bytes.Contains(f.Data, []byte(text)) })
			if f.TCI != c.tci || f.Tagged != (c.tci != 0) {
				t.Errorf("%s: %+v", text, f)
			}
		}
	}
}

// A spoofing VM reaches its host no more than the wire: only what the rules let out.
func TestASpoofDoesNotReachTheHost(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{NoIPv6: true})
	host := r.net.B.Capture(t)
	foreign := net.HardwareAddr{2, 9, 9, 9, 9, 9}
	for _, dst := range []net.HardwareAddr{r.net.B.MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		g.side.Inject(t,
			netnstest.Ethernet(dst, foreign, onceType, []byte("spoof")), netnstest.Ethernet(dst, r.net.B.MAC, onceType, []byte("spoof")),
			netnstest.Tag(netnstest.Ethernet(dst, g.side.MAC, onceType, []byte("spoof")), 9))
	}
	g.side.Inject(t, netnstest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, g.side.MAC, onceType, []byte("spoof")))
	for _, f := range host.Drain(300 * time.Millisecond) {
		if bytes.Contains(f.Data, []byte("spoof")) {
			t.Errorf("the host got %x", f.Data)
		}
	}
	r.eventually("all are counted", func() error {
		d := r.statsOf("vm1").TxDropped
		if d["source_mac"] != 4 || d["vlan_foreign"] != 2 || d["control_frame"] != 1 {
			return fmt.Errorf("%v", d)
		}
		return nil
	})
}

// An address that a VM or its host has is found by the other's duplicate address detection, and no own probe comes back.
func TestDuplicateAddressDetectionSeesTheHost(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{})
	for name, value := range map[string]string{"accept_dad": "1", "dad_transmits": "1"} {
		r.net.B.Sysctl(t, "net/ipv6/conf/"+r.net.B.Dev+"/"+name, value)
	}
	state := func(s *netnstest.Side, addr string) string {
		t.Helper()
		for range 100 {
			if out := s.Output(t, "ip", "-6", "-o", "addr", "show", "dev", s.Dev, "to", addr); !strings.Contains(out, "tentative") || strings.Contains(out, "dadfailed") {
				return out
			}
			time.Sleep(50 * time.Millisecond)
		}
		return "tentative for ever"
	}
	g.side.Output(t, "ip", "addr", "add", "fd77::99/64", "dev", g.side.Dev)
	if s := state(g.side, "fd77::99"); strings.Contains(s, "dadfailed") || strings.Contains(s, "tentative") {
		t.Errorf("the VM's own probe came back: %s", s)
	}
	r.net.B.Output(t, "ip", "addr", "add", "fd77::98/64", "dev", r.net.B.Dev)
	if s := state(r.net.B, "fd77::98"); strings.Contains(s, "dadfailed") || strings.Contains(s, "tentative") {
		t.Errorf("the host's own probe came back: %s", s)
	}
	r.net.B.Output(t, "ip", "addr", "add", "fd77::99/64", "dev", r.net.B.Dev)
	if s := state(r.net.B, "fd77::99"); !strings.Contains(s, "dadfailed") {
		t.Errorf("the host has the VM's address: %s", s)
	}
	g.side.Output(t, "ip", "addr", "add", "fd77::98/64", "dev", g.side.Dev)
	if s := state(g.side, "fd77::98"); !strings.Contains(s, "dadfailed") {
		t.Errorf("the VM has the host's address: %s", s)
	}
}

// What the host and a VM say to each other is captured and traced like all else, and kept to the VM's rates.
func TestTrafficWithTheHostIsHeardAndPaced(t *testing.T) {
	r, g := hostRig(t, netnstest.Options{NoIPv6: true}, "--rate-tx", "400Mbit/64KiB", "--rate-rx", "400Mbit/64KiB")
	file := r.dir + "/vm1.pcapng"
	done := make(chan string, 1)
	go func() {
		out, code := r.cli("capture", "vm1", "-w", file, "--seconds", "3")
		done <- fmt.Sprint(code, " ", out)
	}()
	time.Sleep(300 * time.Millisecond)
	netnstest.Bulk(t, r.net.B, g.side, 16<<20, false, time.Minute)
	netnstest.Bulk(t, g.side, r.net.B, 16<<20, false, time.Minute)
	if out := <-done; !strings.HasPrefix(out, "0 ") {
		t.Errorf("capture: %s", out)
	}
	if b, err := os.ReadFile(file); err != nil || len(b) < 4<<20 {
		t.Errorf("captured %d bytes, %v", len(b), err)
	}
	if s := r.statsOf("vm1"); s.TxPaced == 0 || s.ToHost < 16<<20/1500 || s.FromHost < 16<<20/1500 {
		t.Errorf("paced %d times, %d packets to the host, %d from it", s.TxPaced, s.ToHost, s.FromHost)
	}
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}
