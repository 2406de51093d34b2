package netdev_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// What the kernel says of real devices leads to the same decisions, and so do the commands that the errors name.
func TestRealStackedDevicesAreNoUplinks(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	h := in(t, n.B)
	if err := h.CheckUplink(n.B.Dev, 0); err != nil {
		t.Fatalf("a veth: %v", err)
	}
	use := "'rscctl attach " + n.B.Dev
	mv := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: n.B.Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if err := n.B.NS.Do(func() error { return netlink.LinkAdd(mv) }); err != nil {
		t.Logf("mv0: the kernel has no such device: %v", err)
	} else if err := h.CheckUplink("mv0", 0); !errors.Is(err, netdev.ErrNotUplink) || !strings.Contains(err.Error(), use+"'") {
		t.Errorf("mv0: %v, want one that says %q", err, use+"'")
	} else {
		n.B.Do(t, func() error { return netlink.LinkDel(mv) }) // a device below a macvlan can be in no bridge
	}
	addBridge(t, n.B, "br0")
	if err := h.CheckUplink(n.B.Dev, 0); err != nil {
		t.Errorf("a veth in a bridge: %v", err)
	}
	for _, c := range []struct {
		name, says string
		link       netlink.Link // made if the kernel has the kind
	}{
		{"lo", "loopback", nil},
		{"br0", use + "'", nil},
		{"iv0", use + "'", &netlink.IPVlan{LinkAttrs: netlink.LinkAttrs{Name: "iv0", ParentIndex: n.B.Index}, Mode: netlink.IPVLAN_MODE_L2}},
		{"v7", use + " --vlan 7'", &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "v7", ParentIndex: n.B.Index}, VlanId: 7}},
		{"vx0", "tunnel", &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0"}, VxlanId: 7, VtepDevIndex: n.B.Index, Port: 4789}},
		{"bond0", "balance-rr", netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0"})},
		{"dummy0", "dummy", &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "dummy0"}}},
		{"ifb0", "ifb", &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: "ifb0"}}},
		{"tun0", "no Ethernet", &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}},
		{"tap0", "virtio-net header", &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_VNET_HDR}},
	} {
		if c.link != nil {
			if err := n.B.NS.Do(func() error { return netlink.LinkAdd(c.link) }); err != nil {
				t.Logf("%s: the kernel has no such device: %v", c.name, err) // the other test has its attributes
				continue
			}
		}
		err := h.CheckUplink(c.name, 0)
		if !errors.Is(err, netdev.ErrNotUplink) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s: %v, want one that says %q", c.name, err, c.says)
		}
		if c.link != nil {
			n.B.Do(t, func() error { return netlink.LinkDel(c.link) })
		}
	}
	if err := h.CheckUplink("nosuch0", 0); !errors.Is(err, netdev.ErrNoDevice) {
		t.Errorf("no such interface: %v", err)
	}
}
