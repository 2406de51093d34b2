package netdev_test

import (
	"errors"
	"net"
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/if_tun.h.
const (
	tunCsum = 0x01
	tunTSO4 = 0x02
	tunTSO6 = 0x04
	tunECN  = 0x08
	tunUSO  = 0x60 // TUN_F_USO4 and TUN_F_USO6
)

// openTap makes or opens a tun device in the calling thread's namespace. Closing the descriptor is the test's matter,
// at the latest when it ends.
func openTap(t *testing.T, name string, flags uint16) int {
	t.Helper()
	netnstest.Need(t, netnstest.Device("/dev/net/tun"))
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatalf("TUNSETIFF: %v", err)
	}
	return fd
}

const vmTap = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func inspectTap(t *testing.T, name string) *netdev.TapFacts {
	t.Helper()
	f, err := netdev.InspectTap(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestATapShowsWhatItsGuestTakes(t *testing.T) {
	netnstest.Need(t)
	ns := netnstest.Namespace(t)
	if err := ns.Do(func() error {
		fd := openTap(t, "tap0", vmTap)
		for _, c := range []struct {
			set  int
			want netdev.TapOffloads
		}{
			{tunCsum | tunTSO4 | tunTSO6 | tunECN, netdev.TapOffloads{Csum: true, TSO4: true, TSO6: true, ECN: true}},
			{tunCsum | tunTSO4 | tunTSO6, netdev.TapOffloads{Csum: true, TSO4: true, TSO6: true}},
			{tunCsum | tunTSO6, netdev.TapOffloads{Csum: true, TSO6: true}},
			{tunCsum, netdev.TapOffloads{Csum: true}},
			{0, netdev.TapOffloads{}},
			{tunCsum | tunTSO4, netdev.TapOffloads{Csum: true, TSO4: true}},
			{tunCsum | tunUSO, netdev.TapOffloads{Csum: true, USO: true}},
			{tunCsum | tunTSO4 | tunTSO6, netdev.TapOffloads{Csum: true, TSO4: true, TSO6: true}},
		} {
			err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, c.set)
			if c.want.USO && err == unix.EINVAL { // before Linux 6.2
				continue
			}
			if err != nil {
				return err
			}
			if got := inspectTap(t, "tap0").Offloads; got != c.want {
				t.Errorf("offloads %#x: %+v, want %+v", c.set, got, c.want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestATapWithAndWithoutAReader(t *testing.T) {
	netnstest.Need(t)
	ns := netnstest.Namespace(t)
	if err := ns.Do(func() error {
		fd := openTap(t, "tap0", vmTap)
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			return err
		}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		f := inspectTap(t, "tap0")
		if f.Up || !f.Carrier || f.Queues != 1 || f.MultiQueue || f.Index != l.Attrs().Index || f.MTU != 1500 || f.MasterIndex != 0 || f.Master != "" {
			t.Errorf("with a reader: %+v", f)
		}
		if err := errors.Join(netlink.LinkSetMaster(l, br), netlink.LinkSetMTU(l, 4000), setUp("tap0")); err != nil {
			return err
		}
		unix.Close(fd)
		f = inspectTap(t, "tap0")
		if !f.Up || f.Carrier || f.Queues != 0 || f.MTU != 4000 || f.Master != "br0" || f.MasterIndex != br.Index {
			t.Errorf("without a reader: %+v", f)
		}
		openTap(t, "tap0", vmTap)
		if f = inspectTap(t, "tap0"); !f.Carrier || f.Queues != 1 {
			t.Errorf("with a reader again: %+v", f)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestTheQueuesOfATapAreThoseThatAreRead(t *testing.T) {
	netnstest.Need(t)
	ns := netnstest.Namespace(t)
	if err := ns.Do(func() error {
		first := openTap(t, "tap0", vmTap|unix.IFF_MULTI_QUEUE)
		for range 2 {
			openTap(t, "tap0", vmTap|unix.IFF_MULTI_QUEUE)
		}
		if f := inspectTap(t, "tap0"); !f.MultiQueue || f.Queues != 3 {
			t.Errorf("%+v", f)
		}
		unix.Close(first)
		if f := inspectTap(t, "tap0"); f.Queues != 2 {
			t.Errorf("%+v", f)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNotAUsableTapIsNamed(t *testing.T) {
	netnstest.Need(t)
	ns, other := netnstest.Namespace(t), netnstest.Namespace(t)
	if err := other.Do(func() error { openTap(t, "tap0", vmTap); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		openTap(t, "tun0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
		openTap(t, "plain0", unix.IFF_TAP|unix.IFF_NO_PI)
		if err := addVeth("veth0", "veth1"); err != nil {
			return err
		}
		for _, c := range []struct {
			name string
			want error
		}{
			{"tap0", netdev.ErrNoDevice}, // in another namespace
			{"", netdev.ErrNoDevice},
			{"tun0", netdev.ErrNotTap},
			{"veth0", netdev.ErrNotTap},
			{"lo", netdev.ErrNotTap},
			{"plain0", netdev.ErrNoVnetHdr},
		} {
			if f, err := netdev.InspectTap(c.name); !errors.Is(err, c.want) {
				t.Errorf("%q: %+v, %v", c.name, f, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestDropsOfATapAreSeen(t *testing.T) {
	netnstest.Need(t)
	ns := netnstest.Namespace(t)
	if err := ns.Do(func() error {
		openTap(t, "tap0", vmTap)
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetTxQLen(l, 2), netlink.LinkSetUp(l)); err != nil {
			return err
		}
		before := inspectTap(t, "tap0").TxDropped
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		frame := netnstest.Ethernet(net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}, 0x88b5, nil)
		const n = 5000 // more than any queue of the way holds; nobody reads
		to := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}
		for range n {
			if err := unix.Sendto(fd, frame, unix.MSG_DONTWAIT, to); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
				return err
			}
		}
		if after := inspectTap(t, "tap0").TxDropped; after <= before {
			t.Errorf("%d drops before, %d after", before, after)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
