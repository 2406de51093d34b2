package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// waits is why a VM waits, "" when it does not.
func (r *rig) waits(vm string) string {
	r.t.Helper()
	var st api.Status
	r.json(&st, "status")
	for _, w := range st.Waiting {
		if w.VM == vm {
			return w.Cause
		}
	}
	return ""
}

// An interface that leaves, to another namespace or for good, takes its VMs along: they wait, and say why; when one of its name is there
// again they are served again.
func TestAnInterfaceThatLeavesIsWaitedFor(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	r.attach("a", macA)
	uplink := func(in *netnstest.NS, do func(l netlink.Link) error) {
		t.Helper()
		if err := in.Do(func() error {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			return do(l)
		}); err != nil {
			t.Fatal(err)
		}
	}
	gone := func() error {
		if why := r.waits("a"); why == "" || r.portOf("a") != nil {
			return fmt.Errorf("waits: %q", why)
		}
		return nil
	}
	back := func() error {
		if r.portOf("a") == nil {
			return errors.New(r.waits("a"))
		}
		return nil
	}
	elsewhere := netnstest.Namespace(t)
	move := func(from, to *netnstest.NS) {
		t.Helper()
		f, err := os.Open(to.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		uplink(from, func(l netlink.Link) error { return netlink.LinkSetNsFd(l, int(f.Fd())) })
	}
	move(r.net.B.NS, elsewhere)
	r.eventually("it is gone to another namespace", gone)
	move(elsewhere, r.net.B.NS)
	uplink(r.net.B.NS, netlink.LinkSetUp)
	r.eventually("it is back", back)
	uplink(r.net.B.NS, netlink.LinkDel)
	r.eventually("it is deleted", gone)
	r.net.B.Do(t, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "new0"}, PeerName: "peer0"}); err != nil {
			return err
		}
		if err := netdev.SetOffload("peer0", netdev.TxVLAN, false); err != nil { // kernels before 6.8 do not show XDP the tag
			return err
		}
		l, err := netlink.LinkByName("new0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(l, dev); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	r.eventually("one of its name is there", back)
	r.must("detach", dev)
}

// Whoever removes the folders of sockets takes nothing from VMs that are connected: what is attached stays, is shown where it can be asked
// for, and is detached. The control socket comes back by itself.
func TestAFolderOfSocketsThatIsRemoved(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	folder := filepath.Join(r.dir, "sockets")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	r.must("attach", dev, "--vm", "a", "--mac", macA, "--vhost-user", filepath.Join(folder, "a.sock"))
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if r.portOf("a") == nil {
		t.Error("the VM is gone with its socket's folder")
	}
	r.says(0, []string{"its socket's file", "and attach it again"}, "status")
	r.says(1, []string{folder, "make it"}, "attach", dev, "--vm", "b", "--mac", macB, "--vhost-user", filepath.Join(folder, "b.sock"))
	r.must("detach", dev)
	r.untouched(t)
	if err := os.Remove(filepath.Join(r.dir, "ctl.sock")); err != nil {
		t.Fatal(err)
	}
	r.eventually("the control socket is made anew", func() error {
		if out, code := r.cli("status"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	r.attach("a", macA)
	r.replace() // an heir has the new one
	if r.portOf("a") == nil {
		t.Error("the heir lacks the VM")
	}
	r.must("detach", dev)
}

// On a full disk what would have to be kept is refused, what is taken away is taken away, and both are said; with room again the state is
// written by itself.
func TestAFullDiskIsSaidAndForgetsNoVM(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	dev := r.net.B.Dev
	r.stop()
	state := filepath.Join(r.dir, "state")
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=64k"); err != nil {
		netnstest.Skip(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	r.start()
	r.attach("a", macA)
	r.attach("b", macB)
	filler := filepath.Join(state, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	r.says(1, []string{"not saved", "make room"}, "policy", "set", "a", "--hold", "7us")
	r.says(1, []string{"not saved", "VM a is unchanged"}, "attach", dev, "--vm", "a", "--mac", macA, "--vhost-user", filepath.Join(r.dir, "a.sock"), "--any-memory")
	r.says(1, []string{"not saved"}, "attach", dev, "--vm", "c", "--mac", "52:54:00:00:00:0c", "--vhost-user", filepath.Join(r.dir, "c.sock"))
	r.says(1, []string{"not saved"}, "policy", "set", "--default", "--hold", "7us")
	if p := r.portOf("a"); p == nil || !p.Policy.HoldAdaptive || p.Isolated || r.portOf("c") != nil {
		t.Errorf("%+v", p)
	}
	if out := r.must("detach", dev, "--vm", "b"); !strings.Contains(out, "warning: in force, but") {
		t.Errorf("detach says\n%s", out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.eventually("the state is saved", func() error {
		b, err := os.ReadFile(filepath.Join(state, "state.json"))
		if err != nil || strings.Contains(string(b), `"b"`) || !strings.Contains(string(b), `"a"`) {
			return fmt.Errorf("%s %w", b, err)
		}
		return nil
	})
	r.kill()
	r.start()
	if r.portOf("a") == nil || r.portOf("b") != nil {
		t.Error("the next controller has other VMs")
	}
	r.stop()
}
