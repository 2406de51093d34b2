package netdev_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// says sends one frame of a VM, by its tap.
func says(t *testing.T, fd int, mac net.HardwareAddr) {
	t.Helper()
	frame := append(make([]byte, 10), netnstest.Ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, 0x88b5, []byte("here I am"))...)
	if _, err := unix.Write(fd, frame); err != nil {
		t.Fatal(err)
	}
}

// setMAC gives an interface an address.
func setMAC(name string, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetHardwareAddr(l, mac)
}

func plainMAC(t *testing.T, names ...string) {
	t.Helper()
	for i, name := range names { // a random one can begin like libvirt's
		if err := setMAC(name, net.HardwareAddr{0x02, 0x99, 0, 0, 0, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// What a VM sends makes the bridge say where it is, and the proof follows it: gone as soon as another port has it.
func TestABridgesEntryProvesATap(t *testing.T) {
	long := uint32(30000) // hundredths of a second
	followsEntry(t, makeBridged(t, func(br *netlink.Bridge) { br.AgeingTime = &long }))
}

// With VLAN filtering the entry is that of the tap's own VLAN.
func TestAFilteringBridgesEntryProvesATap(t *testing.T) {
	netnstest.Need(t)
	on, long := true, uint32(30000)
	err := netnstest.Namespace(t).Do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, VlanFiltering: &on})
	})
	if err != nil {
		netnstest.SkipToVM(t, "VLAN filtering in bridges (CONFIG_BRIDGE_VLAN_FILTERING): "+err.Error())
	}
	followsEntry(t, makeBridged(t, func(br *netlink.Bridge) { br.AgeingTime, br.VlanFiltering = &long, &on }))
}

func followsEntry(t *testing.T, b *bridged) {
	t.Helper()
	b.do(t, func() error {
		other := openTap(t, "tap1", vmTap)
		plainMAC(t, "tap0", "tap1")
		if err := join("tap1", b.br.Index); err != nil {
			return err
		}
		b.forwarding(t)
		g := netdev.Guest{MAC: vmAddr, Tap: "tap0", Uplink: b.up}
		if _, err := netdev.FindGuest(g); !errors.Is(err, netdev.ErrUnproved) {
			t.Errorf("before it has sent: %v", err)
		}
		says(t, b.fd, vmAddr)
		p, err := netdev.FindGuest(g)
		if err != nil || p.Tap != "tap0" || p.Index != b.tap || !strings.Contains(p.By, "br0") {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := netdev.ConfirmGuest(g, p); err != nil {
			t.Errorf("again: %v", err)
		}
		// The other VM takes the address: the entry moves.
		says(t, other, vmAddr)
		if _, err := netdev.ConfirmGuest(g, p); !errors.Is(err, netdev.ErrUnproved) || errors.Is(err, netdev.ErrReopened) || !strings.Contains(err.Error(), "tap1") {
			t.Errorf("the address is on tap1: %v", err)
		}
		g.Follow = true
		if p, err := netdev.FindGuest(g); err != nil || p.Tap != "tap1" {
			t.Errorf("found again: %+v, %v", p, err)
		}
		// And back.
		says(t, b.fd, vmAddr)
		if _, err := netdev.ConfirmGuest(g, p); err != nil {
			t.Errorf("back: %v", err)
		}
		// The tap is closed and opened by somebody: nothing is left of the proof.
		if err := unix.IoctlSetInt(b.fd, unix.TUNSETPERSIST, 1); err != nil {
			return err
		}
		unix.Close(b.fd)
		b.fd = openTap(t, "tap0", vmTap)
		if _, err := netdev.ConfirmGuest(g, p); !errors.Is(err, netdev.ErrReopened) {
			t.Errorf("opened again: %v", err)
		}
		b.forwarding(t)
		says(t, b.fd, vmAddr)
		again, err := netdev.FindGuest(g)
		if err != nil || again.Index != b.tap || again.Downs == p.Downs {
			t.Errorf("opened by the VM: %+v, %v", again, err)
		}
		l, err := netlink.LinkByIndex(b.tap)
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(l); err != nil {
			return err
		}
		if _, err := netdev.ConfirmGuest(g, p); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("deleted: %v", err)
		}
		return nil
	})
}

// An entry that an operator set proves as well; the tap's own address does not.
func TestSetEntriesAndOwnAddresses(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		plainMAC(t, "tap0")
		b.forwarding(t)
		g := netdev.Guest{MAC: vmAddr, Tap: "tap0", Uplink: b.up}
		if err := setMAC("tap0", vmAddr); err != nil {
			return err
		}
		if _, err := netdev.FindGuest(g); !errors.Is(err, netdev.ErrUnproved) {
			t.Errorf("the tap has the VM's very address: %v", err)
		}
		plainMAC(t, "tap0")
		if err := netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: b.tap, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: vmAddr,
		}); err != nil {
			return err
		}
		if p, err := netdev.FindGuest(g); err != nil || p.Index != b.tap {
			t.Errorf("a static entry: %+v, %v", p, err)
		}
		return nil
	})
}

// The address that libvirt gives a tap proves it, also after the taps' names are exchanged.
func TestLibvirtsAddressFindsTheTap(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		openTap(t, "tap1", vmTap)
		if err := errors.Join(join("tap1", b.br.Index), setMAC("tap0", net.HardwareAddr{0xfe, 0, 0, 0, 0, 0xbb}), setMAC("tap1", net.HardwareAddr{0xfe, 0, 0, 0, 0, 0xcc})); err != nil {
			return err
		}
		g := netdev.Guest{MAC: vmAddr, Tap: "tap0", Uplink: b.up}
		p, err := netdev.FindGuest(g)
		if err != nil || p.Tap != "tap0" {
			t.Fatalf("%+v, %v", p, err)
		}
		for _, names := range [][2]string{{"tap0", "x"}, {"tap1", "tap0"}, {"x", "tap1"}} {
			l, err := netlink.LinkByName(names[0])
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, names[1]), netlink.LinkSetUp(l)); err != nil {
				return err
			}
		}
		if _, err := netdev.FindGuest(g); !errors.Is(err, netdev.ErrUnproved) || !strings.Contains(err.Error(), "behind tap tap1") {
			t.Errorf("named tap0, which is another's now: %v", err)
		}
		g.Follow = true
		if p, err := netdev.FindGuest(g); err != nil || p.Tap != "tap1" || p.Index != b.tap {
			t.Errorf("found again: %+v, %v", p, err)
		}
		if again, err := netdev.ConfirmGuest(g, p); err != nil || again.Tap != "tap1" {
			t.Errorf("the proof follows the interface, not the name: %+v, %v", again, err)
		}
		if err := setMAC("tap1", net.HardwareAddr{0xfe, 0, 0, 0, 0, 0xdd}); err != nil {
			return err
		}
		if _, err := netdev.ConfirmGuest(g, p); !errors.Is(err, netdev.ErrUnproved) {
			t.Errorf("it got another VM's address: %v", err)
		}
		return nil
	})
}

// The command line of the process that has the tap open proves it: a real process here, with a real descriptor.
func TestTheHoldersCommandLineFindsTheTap(t *testing.T) {
	b := makeBridged(t, nil)
	b.do(t, func() error {
		plainMAC(t, "tap0")
		run := func(mac net.HardwareAddr) (end func()) {
			f := os.NewFile(uintptr(dup(t, b.fd)), "tap")
			cmd := exec.Command("sh", "-c", "read x", "vmm", "-netdev", "tap,fd=3,id=hostnet0", "-device", "virtio-net-pci,netdev=hostnet0,mac="+mac.String())
			cmd.ExtraFiles = []*os.File{f}
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			return func() { in.Close(); _ = cmd.Wait() }
		}
		g := netdev.Guest{MAC: vmAddr, Tap: "tap0", Uplink: b.up}
		end := run(sender)
		if _, err := netdev.FindGuest(g); !errors.Is(err, netdev.ErrUnproved) || !strings.Contains(err.Error(), sender.String()) {
			t.Errorf("another VM has it open: %v", err)
		}
		end()
		end = run(vmAddr)
		defer end()
		if p, err := netdev.FindGuest(g); err != nil || p.Tap != "tap0" || !strings.Contains(p.By, "process") {
			t.Errorf("%+v, %v", p, err)
		}
		return nil
	})
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Asking libvirt ends within a bound and says what is missing.
func TestLibvirtIsAskedWithinABound(t *testing.T) {
	netnstest.NeedLiveKernel(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	virsh := func(script string) {
		if err := os.WriteFile(filepath.Join(dir, "virsh"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ask := func() (string, error) { return netdev.DomainTap(context.Background(), "db1", vmAddr) }
	virsh(`[ "$*" = "--readonly --quiet domiflist --domain db1" ] && echo " vnet3 bridge br0 virtio ` + vmAddr.String() + `"`)
	if tap, err := ask(); tap != "vnet3" || err != nil {
		t.Errorf("%q, %v", tap, err)
	}
	virsh("echo \"error: failed to get domain 'db1'\" >&2; exit 1")
	if _, err := ask(); !errors.Is(err, netdev.ErrLibvirt) || !strings.Contains(err.Error(), "failed to get domain 'db1': see 'virsh list'") || strings.Contains(err.Error(), "\n") {
		t.Errorf("unknown domain: %v", err)
	}
	virsh("exec sleep 1000")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := netdev.DomainTap(ctx, "db1", vmAddr); !errors.Is(err, netdev.ErrLibvirt) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("hangs: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := ask(); !errors.Is(err, netdev.ErrLibvirt) || !strings.Contains(err.Error(), "no virsh") {
		t.Errorf("no virsh: %v", err)
	}
	if _, err := netdev.DomainTap(context.Background(), "", vmAddr); !errors.Is(err, netdev.ErrLibvirt) {
		t.Errorf("no name: %v", err)
	}
}
