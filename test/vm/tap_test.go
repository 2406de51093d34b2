package vm

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
)

const (
	guestTap = "vnet0"
	tapMean  = 15000 // bytes: the least mean frame of a guest that takes superframes on this machine
	tapSome  = 4000  // the same of a short transfer, of which a worker that gets no time for a moment leaves a part to the kernel's path
)

// bootOnTap boots a VM on an ordinary tap that is in a bridge with the uplink, as libvirt does it, and attaches it as it runs.
func (l *lab) bootOnTap(vhost string, o Options) (*VM, control.Hello) {
	l.t.Helper()
	netnstest.Need(l.t, netnstest.TAP)
	o.Name, o.NS, o.MAC = "tap", l.b.NS, guestMAC
	o.Netdev = fmt.Sprintf("tap,ifname=%s,script=no,downscript=no,vhost=%s", guestTap, vhost)
	v, hello := boot(l.t, o)
	l.b.Do(l.t, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		tap, err := netlink.LinkByName(guestTap)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(tap, tapAddress(guestMAC)); err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(tap, l.mtu); err != nil {
			return err
		}
		for _, name := range []string{l.b.Dev, guestTap} {
			port, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(port, br); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(port); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(br)
	})
	l.configure(v)
	l.must("attach", l.b.Dev, "--vm", guestName, "--mac", guestMAC, "--tap", guestTap)
	return v, hello
}

// tapAddress is the address that libvirt gives the tap of a VM.
func tapAddress(guest string) net.HardwareAddr {
	mac, err := net.ParseMAC(guest)
	if err != nil {
		panic(err) // a constant of the tests
	}
	mac[0] = 0xfe
	return mac
}

// A real guest on a tap of its own, as it is: with /dev/vhost-net here by vhost=on and our ring of it, otherwise by QEMU and the
// packet socket. In a VM (RSCCTL_INSIDE), which emulates one more, less goes and frames are as large as the slow sender makes them.
func TestARealGuestOnItsOwnTap(t *testing.T) {
	needVM(t)
	bytes, least, vhost, feed := int64(coalescedBytes), float64(tapMean), "off", "packet"
	if _, err := os.Stat("/dev/vhost-net"); err == nil {
		vhost, feed = "on", "vhost-net"
	}
	l := emptyLab(t)
	v, _ := l.bootOnTap(vhost, Options{})
	families := l.families()
	if os.Getenv("RSCCTL_INSIDE") != "" {
		bytes, least, families = 20e6, 2000, families[:1]
	}
	for i, f := range families {
		seed := uint64(200 + 10*i)
		t.Run("coalesced "+f.name, func(t *testing.T) {
			l.must("policy", "set", guestName, "--coalesce", "on")
			r, got := toGuest(t, v, load{from: l.a, to: f.guest, bytes: bytes, seed: seed})
			checkTransfer(t, "to the guest by "+feed, r, seed, bytes)
			t.Log(got)
			if got.mean() <= least {
				t.Errorf("mean guest frame %.0f bytes, want more than %.0f", got.mean(), least)
			}
			noErrors(t, got)
		})
		t.Run("kernel path "+f.name, func(t *testing.T) {
			l.must("policy", "set", guestName, "--coalesce", "off")
			r, got := toGuest(t, v, load{from: l.a, to: f.guest, bytes: bytes, seed: seed + 1})
			checkTransfer(t, "to the guest by the kernel's GRO and bridge", r, seed+1, bytes)
			t.Log(got)
			noErrors(t, got)
		})
		t.Run("from the guest "+f.name, func(t *testing.T) {
			r := fromGuest(t, v, l.a, f.sender, seed+2, bytes/4)
			checkTransfer(t, "from the guest", r, seed+2, bytes/4)
		})
	}
	t.Log(l.must("status"))
	t.Log(l.must("stats", "--vm", guestName))
	t.Log(l.must("flows"))
	l.must("detach", l.b.Dev)
}
