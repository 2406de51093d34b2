package netdev_test

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

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
		if err := w.Check(); err != nil {
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
		if err := w.Check(); !errors.Is(err, netdev.ErrNoDevice) {
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

// The host's own addresses are those of the interface, of the bridge that it is in, and of what is on these; what the bridge has learned at
// other ports is behind it.
func TestWhoIsOnAnInterfaceAndBehindIt(t *testing.T) {
	netnstest.Need(t)
	n := netnstest.Pair(t, netnstest.Options{NoIPv4: true, NoIPv6: true})
	station := net.HardwareAddr{2, 8, 0, 0, 0, 1}
	n.B.Do(t, func() error {
		up, err := netlink.LinkByName(n.B.Dev)
		if err != nil {
			return err
		}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", HardwareAddr: net.HardwareAddr{2, 7, 0, 0, 0, 1}}}
		port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "p0", HardwareAddr: net.HardwareAddr{2, 7, 0, 0, 0, 2}}, PeerName: "p1"}
		for _, l := range []netlink.Link{br, port} {
			if err := errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l)); err != nil {
				return err
			}
		}
		end, err := netlink.LinkByName(port.PeerName)
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetMaster(up, br), netlink.LinkSetMaster(port, br), netlink.LinkSetUp(end)); err != nil {
			return err
		}
		entry := &netlink.Neigh{LinkIndex: port.Index, Family: 7, State: netlink.NUD_REACHABLE, Flags: netlink.NTF_MASTER, HardwareAddr: station} // PF_BRIDGE
		for until := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {                                                       // the port forwards soon
			if err = netlink.NeighAppend(entry); err == nil || time.Now().After(until) {
				break
			}
		}
		if err != nil {
			return err
		}
		on, err := netdev.AddressesOn(n.B.Index)
		if err != nil {
			return err
		}
		has := func(all []net.HardwareAddr, mac net.HardwareAddr) bool {
			return slices.ContainsFunc(all, func(m net.HardwareAddr) bool { return bytes.Equal(m, mac) })
		}
		if len(on) != 2 || !has(on, n.B.MAC) || !has(on, br.HardwareAddr) {
			t.Errorf("on it: %v", on)
		}
		behind, err := netdev.StationsBehind(n.B.Index)
		if err != nil {
			return err
		}
		if !has(behind, station) || has(behind, n.B.MAC) || has(behind, br.HardwareAddr) || has(behind, port.HardwareAddr) {
			t.Errorf("behind it: %v", behind)
		}
		return nil
	})
}
