package netdev_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridged is a host with a bridge br0 of three ports: the uplink up0 (its other end is wire0), the VM's tap tap0, and a
// third party third0 (its other end is seen0), which sees what the bridge floods. Everything is in one namespace.
type bridged struct {
	ns      *netnstest.NS
	fd      int // the VM
	br      *netlink.Bridge
	up, tap int
}

func makeBridged(t *testing.T, set func(b *netlink.Bridge)) *bridged {
	t.Helper()
	netnstest.Need(t)
	b := &bridged{ns: netnstest.Namespace(t), br: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}}
	ageing := uint32(100) // a second
	b.br.AgeingTime = &ageing
	if set != nil {
		set(b.br)
	}
	b.do(t, func() error {
		if err := netlink.LinkAdd(b.br); err != nil {
			return err
		}
		if err := errors.Join(addVeth("up0", "wire0"), addVeth("third0", "seen0")); err != nil {
			return err
		}
		b.fd = openTap(t, "tap0", vmTap)
		for _, name := range []string{"up0", "third0", "tap0"} {
			if err := join(name, b.br.Index); err != nil {
				return err
			}
		}
		b.up, b.tap = index(t, "up0"), index(t, "tap0")
		return errors.Join(setUp("wire0"), setUp("seen0"), setUp("br0"))
	})
	return b
}

// join makes an interface a port of a bridge and waits until it forwards.
func join(name string, bridge int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMasterByIndex(l, bridge), netlink.LinkSetUp(l))
}

func index(t *testing.T, name string) int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

func (b *bridged) do(t *testing.T, fn func() error) {
	t.Helper()
	if err := b.ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// forwarding waits until the bridge lets frames through all its ports: it does so a moment after they are up.
func (b *bridged) forwarding(t *testing.T) *netdev.BridgePorts {
	t.Helper()
	for range 500 {
		p, err := netdev.FindPorts(b.up, 0, b.tap)
		if err != nil {
			t.Fatal(err)
		}
		third, err := netdev.FindPorts(index(t, "third0"), 0, b.tap)
		if err != nil {
			t.Fatal(err)
		}
		if p.Port.Forwarding && p.Tap.Forwarding && third.Port.Forwarding {
			return p
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the bridge does not forward")
	return nil
}

// entry is the bridge's entry of an address, nil if none.
func (b *bridged) entry(t *testing.T, vid int, mac net.HardwareAddr) *netlink.Neigh {
	t.Helper()
	list, err := netlink.NeighListExecute(netlink.Ndmsg{Family: unix.AF_BRIDGE})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if n.MasterIndex == b.br.Index && n.HardwareAddr.String() == mac.String() && n.Vlan == vid {
			return &n
		}
	}
	return nil
}

var (
	sender = net.HardwareAddr{2, 0, 0, 0, 0, 0xaa}
	vmAddr = net.HardwareAddr{2, 0, 0, 0, 0, 0xbb}
)

// floods sends one frame from the VM to the sender and tells whether the third party saw it.
func (b *bridged) floods(t *testing.T) bool {
	t.Helper()
	third := &netnstest.Side{NS: b.ns, Dev: "seen0", Index: index(t, "seen0")}
	c := third.Capture(t)
	frame := append(make([]byte, 10), netnstest.Ethernet(sender, vmAddr, 0x88b5, []byte("to the sender"))...)
	if _, err := unix.Write(b.fd, frame); err != nil {
		t.Fatal(err)
	}
	for _, f := range c.Drain(100 * time.Millisecond) {
		if net.HardwareAddr(f.Data[:6]).String() == sender.String() {
			return true
		}
	}
	return false
}

func TestTheWayThroughABridgeIsFound(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		p := b.forwarding(t)
		want := netdev.BridgePorts{Bridge: "br0", Index: b.br.Index, Ageing: time.Second,
			Port: netdev.BridgePort{Name: "up0", Index: b.up, Forwarding: true, Learning: true, Member: true, Untagged: true},
			Tap:  netdev.BridgePort{Name: "tap0", Index: b.tap, Forwarding: true, Learning: true, Member: true, Untagged: true}}
		if *p != want {
			t.Errorf("got  %+v\nwant %+v", *p, want)
		}
		l, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetLearning(l, false), netlink.LinkSetIsolated(l, true), netlink.LinkSetDown(l)); err != nil {
			return err
		}
		if p, err = netdev.FindPorts(b.up, 0, b.tap); err != nil || p.Port.Learning || !p.Port.Isolated || p.Port.Forwarding {
			t.Errorf("changed: %+v, %v", p, err)
		}
		return nil
	})
}

func TestWithoutABridgeThereIsNoWay(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		if err := addVeth("alone0", "alone1"); err != nil {
			return err
		}
		other := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br1"}}
		if err := netlink.LinkAdd(other); err != nil {
			return err
		}
		if err := join("alone1", other.Index); err != nil {
			return err
		}
		for _, c := range []struct {
			name    string
			up, tap int
			vlan    uint16
			want    error
		}{
			{"the tap in none", b.up, index(t, "alone0"), 0, netdev.ErrNotBridged},
			{"the uplink in none", index(t, "alone0"), b.tap, 0, netdev.ErrNotBridged},
			{"another bridge", index(t, "alone1"), b.tap, 0, netdev.ErrNotBridged},
			{"a VLAN that nobody takes off", b.up, b.tap, 100, netdev.ErrNotBridged},
			{"no uplink", 1 << 20, b.tap, 0, netdev.ErrNoDevice},
			{"no tap", b.up, 1 << 20, 0, netdev.ErrNoDevice},
		} {
			if p, err := netdev.FindPorts(c.up, c.vlan, c.tap); !errors.Is(err, c.want) {
				t.Errorf("%s: %+v, %v", c.name, p, err)
			}
		}
		return nil
	})
}

func TestAVLANDeviceIsThePort(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		up, err := netlink.LinkByName("wire0") // an uplink that is itself in no bridge
		if err != nil {
			return err
		}
		v := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "wire0.100", ParentIndex: up.Attrs().Index}, VlanId: 100}
		if err := netlink.LinkAdd(v); err != nil {
			netnstest.SkipToVM(t, "802.1Q devices (CONFIG_VLAN_8021Q): "+err.Error())
		}
		if p, err := netdev.FindPorts(up.Attrs().Index, 100, b.tap); !errors.Is(err, netdev.ErrNotBridged) {
			t.Errorf("a VLAN device in no bridge: %+v, %v", p, err)
		}
		if err := join("wire0.100", b.br.Index); err != nil {
			return err
		}
		p, err := netdev.FindPorts(up.Attrs().Index, 100, b.tap)
		if err != nil {
			return err
		}
		if p.Port.Name != "wire0.100" || p.Port.Index != v.Index || p.VID != 0 {
			t.Errorf("%+v", p)
		}
		for _, vlan := range []uint16{0, 101} {
			if p, err := netdev.FindPorts(up.Attrs().Index, vlan, b.tap); !errors.Is(err, netdev.ErrNotBridged) {
				t.Errorf("VLAN %d: %+v, %v", vlan, p, err)
			}
		}
		return nil
	})
}

// A sender that is only seen by XDP is forgotten by the bridge unless somebody tells it.
func TestARefreshedSenderIsNeverFlooded(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		b.forwarding(t)
		refresh := func() {
			if err := netdev.RefreshFDB(b.up, 0, []net.HardwareAddr{sender}); err != nil {
				t.Fatal(err)
			}
		}
		if !b.floods(t) {
			t.Fatal("the bridge knows a sender that never sent")
		}
		refresh()
		if b.floods(t) {
			t.Error("flooded at once")
		}
		for range 25 { // in all, longer than the ageing time
			refresh()
			time.Sleep(100 * time.Millisecond)
		}
		refresh()
		if b.floods(t) {
			t.Error("flooded after the ageing time, though refreshed")
		}
		n := b.entry(t, 0, sender)
		if n == nil || n.LinkIndex != b.up || n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
			t.Errorf("the entry: %+v", n)
		}
		time.Sleep(2500 * time.Millisecond)
		if !b.floods(t) {
			t.Error("the entry does not age")
		}
		return nil
	})
}

func TestASenderMovesToThePortItIsSeenAt(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		b.forwarding(t)
		if err := netdev.RefreshFDB(index(t, "third0"), 0, []net.HardwareAddr{sender}); err != nil {
			return err
		}
		if n := b.entry(t, 0, sender); n == nil || n.LinkIndex == b.up {
			t.Fatalf("%+v", n)
		}
		if err := netdev.RefreshFDB(b.up, 0, []net.HardwareAddr{sender}); err != nil {
			return err
		}
		if n := b.entry(t, 0, sender); n == nil || n.LinkIndex != b.up {
			t.Errorf("%+v", n)
		}
		return nil
	})
}

func TestEntriesThatSomebodySetStay(t *testing.T) {
	for _, c := range []struct {
		name  string
		state int
		flags int
	}{
		{"static", netlink.NUD_NOARP, netlink.NTF_MASTER},
		{"local", netlink.NUD_PERMANENT, netlink.NTF_MASTER},
		{"sticky", netlink.NUD_NOARP, netlink.NTF_MASTER | netlink.NTF_STICKY},
		{"of a control plane", netlink.NUD_REACHABLE, netlink.NTF_MASTER | netlink.NTF_EXT_LEARNED},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := makeBridged(t, nil)
			b.do(t, func() error {
				b.forwarding(t)
				if err := netlink.NeighAppend(&netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: index(t, "third0"), HardwareAddr: sender, State: c.state, Flags: c.flags}); err != nil {
					return err
				}
				before := b.entry(t, 0, sender)
				if before == nil {
					t.Fatal("no entry")
				}
				if err := netdev.RefreshFDB(b.up, 0, []net.HardwareAddr{sender}); err != nil {
					return err
				}
				after := b.entry(t, 0, sender)
				if after == nil || after.LinkIndex != before.LinkIndex || after.State != before.State || after.Flags != before.Flags {
					t.Errorf("before %+v\nafter  %+v", before, after)
				}
				return nil
			})
		})
	}
}

func TestNothingIsLearnedWhereTheBridgeDoesNot(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		b.forwarding(t)
		odd := []net.HardwareAddr{{1, 0, 0x5e, 0, 0, 1}, make(net.HardwareAddr, 6), nil, {1, 2}}
		if err := netdev.RefreshFDB(b.up, 0, odd); err != nil {
			t.Errorf("addresses of no sender: %v", err)
		}
		if n := b.entry(t, 0, odd[0]); n != nil {
			t.Errorf("a group is remembered: %+v", n)
		}
		l, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetLearning(l, false); err != nil {
			return err
		}
		if err := netdev.RefreshFDB(b.up, 0, []net.HardwareAddr{sender}); err != nil {
			return err
		}
		if n := b.entry(t, 0, sender); n != nil {
			t.Errorf("learned on a port that does not learn: %+v", n)
		}
		for want, port := range map[error]int{netdev.ErrNotBridged: index(t, "wire0"), netdev.ErrNoDevice: 1 << 20} {
			if err := netdev.RefreshFDB(port, 0, []net.HardwareAddr{sender}); !errors.Is(err, want) {
				t.Errorf("want %v, got %v", want, err)
			}
		}
		return nil
	})
}

func TestVLANFilteringIsFollowed(t *testing.T) {
	on := true
	netnstest.Need(t)
	probe := netnstest.Namespace(t)
	if err := probe.Do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, VlanFiltering: &on})
	}); err != nil {
		netnstest.SkipToVM(t, "VLAN filtering in bridges (CONFIG_BRIDGE_VLAN_FILTERING): "+err.Error())
	}
	b := makeBridged(t, func(br *netlink.Bridge) { br.VlanFiltering = &on })
	b.do(t, func() error {
		if p := b.forwarding(t); !p.VLANFiltering || p.VID != 1 || !p.Port.Member || !p.Tap.Member || !p.Tap.Untagged {
			t.Errorf("by default: %+v", p)
		}
		up, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		tap, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		if p, err := netdev.FindPorts(b.up, 100, b.tap); err != nil || p.VID != 100 || p.Port.Member || p.Tap.Member {
			t.Errorf("VLAN 100, of which nobody is: %+v, %v", p, err)
		}
		if err := errors.Join(netlink.BridgeVlanAdd(up, 100, false, false, false, true), netlink.BridgeVlanAdd(tap, 100, true, true, false, true)); err != nil {
			return err
		}
		if p, err := netdev.FindPorts(b.up, 100, b.tap); err != nil || p.VID != 100 || !p.Port.Member || p.Port.Untagged || !p.Tap.Member || !p.Tap.Untagged {
			t.Errorf("VLAN 100: %+v, %v", p, err)
		}
		if err := netdev.RefreshFDB(b.up, 100, []net.HardwareAddr{sender}); err != nil {
			return err
		}
		for vid, want := range map[int]bool{0: false, 1: false, 100: true} {
			if n := b.entry(t, vid, sender); (n != nil) != want {
				t.Errorf("VLAN %d: %+v", vid, n)
			}
		}
		if b.floods(t) {
			t.Error("flooded in VLAN 100")
		}
		return nil
	})
}
