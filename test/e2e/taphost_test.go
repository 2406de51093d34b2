package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

// What stands around a VM's tap on its host: wrong taps, the bridge's memory, rules on the path, VLANs.

// Every wrong tap is one line that names it, and leaves nothing behind.
func TestWrongTapsAreRefused(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.bridge()
	r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA)})
	tapvm.Start(t, tapvm.Options{Tap: "plain0", Host: r.net.B.NS, MAC: mac(t, macB), NoHeader: true})
	tapvm.Start(t, tapvm.Options{Tap: "away0", Host: r.net.A.NS, MAC: mac(t, macC)})
	dev := r.net.B.Dev
	for _, tc := range []struct {
		name, tap string
		args      []string
		code      int
		says      string
	}{
		{"no such tap", "nosuch0", nil, 1, "nosuch0"},
		{"not a tap", "br0", nil, 1, "br0"},
		{"no vnet header", "plain0", nil, 1, "vnet_hdr"},
		{"in another namespace", "away0", nil, 1, "away0"},
		{"the interface itself", dev, nil, 2, dev},
		{"two ways", "vm0", []string{"--vhost-user", "/x"}, 2, "--tap"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := r.cli(append([]string{"attach", dev, "--vm", "x", "--mac", macA, "--tap", tc.tap}, tc.args...)...)
			if code != tc.code || strings.Count(strings.TrimSpace(out), "\n") != 0 || !strings.Contains(out, tc.says) {
				t.Errorf("exit %d, want %d, one line that says %q:\n%s", code, tc.code, tc.says, out)
			}
			r.untouched(t)
		})
	}
	r.attachTap("vm0", macA)
	out, code := r.cli("attach", dev, "--vm", "again", "--mac", macB, "--tap", "vm0")
	if code != 1 || !strings.Contains(out, "vm0") {
		t.Errorf("a tap twice: exit %d: %s", code, out)
	}
}

// A bridge that forgets senders after a second does not flood what a VM sends to one whose frames it does not see.
func TestTapSendersStayKnownToTheBridge(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.bridge()
	r.net.B.Sysctl(t, "net/ipv6/conf/br0/disable_ipv6", "1")
	r.net.B.Output(t, "ip", "link", "set", "dev", "br0", "type", "bridge", "ageing_time", "100") // hundredths of a second
	vm := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24")})
	r.tapVM(tapvm.Options{Tap: "vm1", MAC: mac(t, macB), IPv4: netip.MustParsePrefix("10.77.0.11/24")}) // sees what is flooded
	r.attachTap("vm0", macA)
	var frames uint64
	r.net.B.Do(t, func() error {
		bystander, err := netlink.LinkByName("vm1")
		if err != nil {
			return err
		}
		from := bystander.Attrs().Statistics.TxPackets
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
			netnstest.Bulk(t, r.net.A, vm.Guest, 4<<20, false, time.Minute)
		}
		bystander, err = netlink.LinkByName("vm1")
		if err == nil {
			frames = bystander.Attrs().Statistics.TxPackets - from
		}
		return err
	})
	var st api.Stats
	r.json(&st, "stats")
	if st.VMs[0].Superframes == 0 {
		t.Fatal("nothing came our way")
	}
	if frames > 20 { // ARP and the like
		t.Errorf("%d frames were flooded", frames)
	}
}

// Rules on the path that frames would no longer take are refused by name, and accepted knowingly.
func TestFiltersOnATapsPathAreBypassedKnowingly(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.bridge()
	vm := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.77.0.10/24")})
	r.isolate(true)
	args := []string{"attach", r.net.B.Dev, "--vm", "vm0", "--mac", macA, "--tap", "vm0"}
	out, code := r.cli(args...)
	if code != 1 || !strings.Contains(out, "isolated") || !strings.Contains(out, "--bypass-filters") {
		t.Errorf("exit %d: %s", code, out)
	}
	r.untouched(t)
	if out := r.must(append(args, "--bypass-filters")...); !strings.Contains(out, "isolated") {
		t.Errorf("attach does not say what is bypassed: %s", out)
	}
	var st api.Status
	r.json(&st, "status")
	if len(st.Interfaces[0].Ports[0].Bypassed) == 0 {
		t.Errorf("status does not: %+v", st.Interfaces[0].Ports[0])
	}
	r.isolate(false)
	netnstest.Bulk(t, r.net.A, vm.Guest, 1<<20, false, time.Minute)
}

// isolate makes the uplink and the VM's tap isolated ports, between which the bridge forwards nothing.
func (r *rig) isolate(on bool) {
	r.t.Helper()
	state := map[bool]string{true: "on", false: "off"}[on]
	for _, dev := range []string{r.net.B.Dev, "vm0"} {
		r.net.B.Output(r.t, "ip", "link", "set", "dev", dev, "type", "bridge_slave", "isolated", state)
	}
}

// A VM of a VLAN on a tagged uplink: its tap is in a bridge with the uplink's VLAN device, as libvirt sets it up. The guest sees
// no tag, and a VM of the untagged network with the same address nothing of it.
func TestTapOfAVLANGetsItsFramesUntagged(t *testing.T) {
	netnstest.Need(t, netnstest.VLAN)
	r := newRig(t, netnstest.Options{})
	r.bridge()
	plain := r.tapVM(tapvm.Options{Tap: "vm0", MAC: mac(t, macA)})
	sender := &netnstest.Side{NS: r.net.A.NS, Dev: "wire7", MAC: r.net.A.MAC, IPv4: netip.MustParsePrefix("10.78.0.1/24")}
	r.net.A.Do(t, func() error { return addVLAN(r.net.A.Dev, sender.Dev, 7, sender.IPv4) })
	r.net.A.SetOffload(t, netdev.TxVLAN, false)
	r.net.B.Do(t, func() error { return addVLAN(r.net.B.Dev, "up7", 7, netip.Prefix{}) })
	tagged := tapvm.Start(t, tapvm.Options{Tap: "vm7", Host: r.net.B.NS, Engine: engine(), MAC: mac(t, macA), IPv4: netip.MustParsePrefix("10.78.0.10/24")})
	r.net.B.Do(t, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br7"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		for _, name := range []string{"up7", "vm7"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(l, br); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(br)
	})
	r.attachTap("vm0", macA)
	r.attachTap("vm7", macA, "--vlan", "7")
	from := plain.Stats().Frames
	r.merged(sender, tagged, toTap, false)
	netnstest.Bulk(t, tagged.Guest, sender, fromTap, false, 3*time.Minute)
	if n := plain.Stats().Frames - from; n > 100 { // neighbour discovery and the like
		t.Errorf("%d frames for the untagged VM", n)
	}
}

func addVLAN(parent, name string, id int, addr netip.Prefix) error {
	p, err := netlink.LinkByName(parent)
	if err != nil {
		return err
	}
	l := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: p.Attrs().Index}, VlanId: id}
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	if addr.IsValid() {
		a, err := netlink.ParseAddr(addr.String())
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}
