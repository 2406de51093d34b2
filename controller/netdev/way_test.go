package netdev_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// The way says nothing of its own, is no VM's tap, is switched on again, and is gone with its descriptor.
func TestTheWayIsSilentAndGoesWithItsDescriptor(t *testing.T) {
	netnstest.Need(t, netnstest.Device("/dev/net/tun"))
	s := &netnstest.Side{NS: netnstest.Namespace(t)}
	s.Do(t, func() error {
		w, err := netdev.OpenWay("eth0", 7)
		if err != nil {
			return err
		}
		other, err := netdev.OpenWay("eth0", 7) // the name is taken
		if err != nil {
			return err
		}
		if w.Name != "rsc-eth0" || other.Name != "rsc-7" {
			t.Errorf("%s and %s", w.Name, other.Name)
		}
		if _, err := netdev.OpenWay("eth0", 7); !errors.Is(err, netdev.ErrNoTun) {
			t.Errorf("a third one: %v", err)
		}
		_ = other.Close()
		l, err := netlink.LinkByName(w.Name)
		if err != nil {
			return err
		}
		if a, err := netlink.AddrList(l, netlink.FAMILY_ALL); err != nil || len(a) > 0 || l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().MTU < 65521 {
			t.Errorf("%v, %v, %+v", a, err, l.Attrs())
		}
		all, err := withLinks()
		if err != nil || slices.ContainsFunc(all, func(l netdev.Link) bool { return l.Tap }) {
			t.Errorf("%+v, %v", all, err)
		}
		if err := netlink.LinkSetDown(l); err != nil {
			return err
		}
		if err := netdev.With(w.Check); err != nil {
			return err
		}
		if l, _ = netlink.LinkByName(w.Name); l.Attrs().Flags&net.FlagUp == 0 {
			t.Error("it stays off")
		}
		if n := l.Attrs().Statistics.TxPackets; n != 0 {
			t.Errorf("%d frames of its own", n)
		}
		if err := netlink.LinkDel(l); err != nil {
			return err
		}
		if err := netdev.With(w.Check); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("deleted: %v", err)
		}
		_ = w.Close()
		w, err = netdev.OpenWay("averylonguplink", 9)
		if err != nil {
			return err
		}
		if w.Name != "rsc-9" {
			t.Errorf("of a long name: %s", w.Name)
		}
		_ = w.Close()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := netlink.LinkByName("rsc-9"); err != nil {
				return nil
			} else if time.Now().After(end) {
				t.Error("it outlives its descriptor")
				return nil
			}
		}
	})
}

func withLinks() (all []netdev.Link, err error) {
	err = netdev.With(func(h *netdev.Handle) error {
		all, err = h.Links()
		return err
	})
	return all, err
}

// What is on top of an interface is on it, the bridge that it is in included; what that bridge has learned at its other ports is behind it.
func TestWhoIsOnAnInterfaceAndBehindIt(t *testing.T) {
	netnstest.Need(t)
	n := netnstest.Pair(t, netnstest.Options{NoIPv4: true, NoIPv6: true})
	station := net.HardwareAddr{2, 8, 0, 0, 0, 1}
	n.B.Do(t, func() error {
		br, port, err := bridgeWithPort(n.B.Dev, false)
		if err == nil {
			err = learnAt(port, station, 0)
		}
		if err != nil {
			return err
		}
		on, err := netdev.AddressesOn(n.B.Index)
		if err != nil {
			return err
		}
		has := func(all []netdev.Own, mac net.HardwareAddr, dev string) bool {
			return slices.Contains(all, netdev.Own{Station: netdev.Station{MAC: [6]byte(mac)}, Dev: dev})
		}
		if len(on) != 2 || !has(on, n.B.MAC, n.B.Dev) || !has(on, br, "br0") {
			t.Errorf("on it: %v", on)
		}
		behind, err := stationsBehind(n.B.Index)
		if len(behind) != 1 || behind[0] != (netdev.Station{MAC: [6]byte(station)}) {
			t.Errorf("behind it: %v", behind)
		}
		return err
	})
}

// A VLAN device and what is on top of it are on the interface below with the tag that their frames have there: of two the outer one.
func TestWhoIsOnAnInterfaceInWhichVLAN(t *testing.T) {
	netnstest.Need(t, netnstest.VLAN)
	n := netnstest.Pair(t, netnstest.Options{NoIPv4: true, NoIPv6: true})
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{2, 7, 0, 0, 0, last} }
	n.B.Do(t, func() error {
		seven := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "seven", ParentIndex: n.B.Index, HardwareAddr: mac(1)}, VlanId: 7}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", HardwareAddr: mac(2)}}
		if err := errors.Join(netlink.LinkAdd(seven), netlink.LinkAdd(br), netlink.LinkSetMaster(seven, br)); err != nil {
			return err
		}
		eight := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "eight", ParentIndex: br.Index, HardwareAddr: mac(3)}, VlanId: 8}
		if err := netlink.LinkAdd(eight); err != nil {
			return err
		}
		on, err := netdev.AddressesOn(n.B.Index)
		own := func(dev string, mac net.HardwareAddr, vlan uint16) netdev.Own {
			return netdev.Own{Station: netdev.Station{MAC: [6]byte(mac), VLAN: vlan}, Dev: dev}
		}
		want := []netdev.Own{own("br0", mac(2), 7), own("eight", mac(3), 7), own("seven", mac(1), 7), own(n.B.Dev, n.B.MAC, 0)}
		slices.SortFunc(on, func(a, b netdev.Own) int { return strings.Compare(a.Dev, b.Dev) })
		if !slices.Equal(on, want) {
			t.Errorf("on it: %v", on)
		}
		return err
	})
}

// Of a bridge with VLAN filtering what is in VLANs of the interface is behind it, each with the tag that it has there.
func TestWhoIsBehindAnInterfaceInWhichVLAN(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv4: true, NoIPv6: true})
	n.B.Do(t, func() error {
		_, port, err := bridgeWithPort(n.B.Dev, true)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("allowed: needs bridges with VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING): the VM of test/hostvm has them")
		}
		if err != nil {
			return err
		}
		up, err := netlink.LinkByName(n.B.Dev)
		if err != nil {
			return err
		}
		// VLAN 1 is untagged at both ports without a word. The interface has 7 with a tag, and none of 8.
		for _, v := range []struct {
			port netlink.Link
			vid  uint16
		}{{up, 7}, {port, 7}, {port, 8}} {
			if err := netlink.BridgeVlanAdd(v.port, v.vid, false, false, false, true); err != nil {
				return err
			}
		}
		for i, vid := range []int{1, 7, 8} {
			if err := learnAt(port, net.HardwareAddr{2, 8, 0, 0, 0, byte(i)}, vid); err != nil {
				return err
			}
		}
		behind, err := stationsBehind(n.B.Index)
		if !slices.Equal(behind, []netdev.Station{{MAC: [6]byte{2, 8}}, {MAC: [6]byte{2, 8, 0, 0, 0, 1}, VLAN: 7}}) {
			t.Errorf("behind it: %v", behind)
		}
		return err
	})
}

// stationsBehind are those that the test has named, each once, by their VLANs: the port's own end speaks too, and a bridge may have an
// entry for each VLAN of the port.
func stationsBehind(ifindex int) ([]netdev.Station, error) {
	all, err := netdev.StationsBehind(ifindex)
	all = slices.DeleteFunc(all, func(s netdev.Station) bool { return s.MAC[0] != 2 || s.MAC[1] != 8 })
	slices.SortFunc(all, func(a, b netdev.Station) int { return int(a.VLAN) - int(b.VLAN) })
	return slices.Compact(all), err
}

// bridgeWithPort puts a device into a new bridge with another port.
func bridgeWithPort(dev string, vlans bool) (mac net.HardwareAddr, _ netlink.Link, err error) {
	up, err := netlink.LinkByName(dev)
	if err != nil {
		return nil, nil, err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", HardwareAddr: net.HardwareAddr{2, 7, 0, 0, 0, 1}}}
	if vlans {
		br.VlanFiltering = &vlans
	}
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "p0", HardwareAddr: net.HardwareAddr{2, 7, 0, 0, 0, 2}}, PeerName: "p1"}
	for _, l := range []netlink.Link{br, port} {
		if err := errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l)); err != nil {
			return nil, nil, err
		}
	}
	end, err := netlink.LinkByName(port.PeerName)
	if err != nil {
		return nil, nil, err
	}
	return br.HardwareAddr, port, errors.Join(netlink.LinkSetMaster(up, br), netlink.LinkSetMaster(port, br), netlink.LinkSetUp(end))
}

// learnAt has the bridge of a port know an address behind it.
func learnAt(port netlink.Link, mac net.HardwareAddr, vlan int) (err error) {
	entry := &netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_REACHABLE, Flags: netlink.NTF_MASTER, HardwareAddr: mac, Vlan: vlan}
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the port forwards soon
		if err = netlink.NeighAppend(entry); err == nil || time.Now().After(until) {
			return err
		}
	}
}
