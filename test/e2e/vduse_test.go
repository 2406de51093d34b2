package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vduse"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// driverGuest is a guest whose driver is this kernel's own virtio-net.
type driverGuest struct {
	*vduse.Device
	side *netnstest.Side
}

// bootDriver has this kernel's driver take a device whose back-end is at the socket, and moves the interface to a namespace of its own.
func (r *rig) bootDriver(socket, address string, addrs ...string) *driverGuest {
	r.t.Helper()
	ns := netnstest.Namespace(r.t)
	ctx, cancel := context.WithTimeout(context.Background(), netnstest.Patience(10*time.Second))
	defer cancel()
	d, err := vduse.Open(ctx, vduse.Config{Name: fmt.Sprintf("rsct%d", os.Getpid()), Socket: socket, MAC: mac(r.t, address)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			r.t.Error(err)
		}
	})
	name, err := d.Interface()
	if err != nil {
		r.t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := netlink.LinkSetNsFd(link, ns.FD()); err != nil {
		r.t.Fatal(err)
	}
	g := &driverGuest{d, &netnstest.Side{NS: ns, Dev: name, MAC: mac(r.t, address)}}
	g.side.Do(r.t, func() error { return bringUp(g.side, addrs...) })
	return g
}

// frames are what the driver says it has received and sent since its interface was made.
func (g *driverGuest) frames(t *testing.T) (received, sent uint64) {
	t.Helper()
	g.side.Do(t, func() error {
		l, err := netlink.LinkByName(g.side.Dev)
		if err == nil {
			received, sent = l.Attrs().Statistics.RxPackets, l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return received, sent
}

// Linux's own virtio-net driver takes what its features say it may be given, and gives what they say it may be asked for: superframes of TCP and of
// UDP, both ways. QEMU carries the features of UDP to no vhost-user back-end, VDUSE does.
func TestTheKernelsDriverTakesSuperframesOfUDP(t *testing.T) {
	if err := netnstest.Device(vduse.Control).Check(); err != nil {
		t.Skip("allowed: this kernel has no VDUSE: the driver is shown this with another one, see docs/testing.md (RSCCTL_VM_KERNEL): " + err.Error())
	}
	netnstest.Need(t, netnstest.Kernel(6, 2)) // the driver knows no superframes of UDP before
	r := newRig(t, netnstest.Options{})
	g := r.bootDriver(r.attach("vm0", macA), macA, "10.77.0.10/24", "fd77::10/64")
	t.Logf("the driver accepted %s", strings.Join(g.Features().Names(), " "))
	if want := virtio.Mask(virtio.FGuestUSO4, virtio.FGuestUSO6, virtio.FHostUSO, virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FMrgRxbuf); g.Features()&want != want {
		t.Fatalf("the driver did not accept %v", (want &^ g.Features()).Names())
	}
	g.side.SetOffload(t, "gro", false) // whatever is merged was merged by the product
	if err := netnstest.Tool("ethtool").Check(); err == nil {
		t.Logf("%s", g.side.Output(t, "ethtool", "-k", g.side.Dev))
	}
	stats := func() api.VMStats {
		t.Helper()
		var s api.Stats
		r.json(&s, "stats")
		if s.Unexplained != 0 {
			t.Errorf("%d packets are unexplained", s.Unexplained)
		}
		return s.VMs[0]
	}
	const bytes = 4 << 20
	for _, v6 := range []bool{false, true} {
		was, _ := g.frames(t)
		netnstest.Bulk(t, r.net.A, g.side, bytes, v6, time.Minute)
		now, _ := g.frames(t)
		if packets := uint64(bytes / 1460); now-was > packets/2 {
			t.Errorf("IPv6 %v: %d packets of TCP in %d frames", v6, packets, now-was)
		}
		_, was = g.frames(t)
		netnstest.Bulk(t, g.side, r.net.A, bytes, v6, time.Minute)
		_, now = g.frames(t)
		if packets := uint64(bytes / 1460); now-was > packets/2 {
			t.Errorf("IPv6 %v: %d packets of TCP sent in %d frames", v6, packets, now-was)
		}
	}
	n := streamLen()
	for _, udp := range []string{"off", "on"} {
		r.must("policy", "set", "vm0", "--udp", udp)
		before, was := stats(), uint64(0)
		was, _ = g.frames(t)
		calls := passDatagrams(t, r.net.A, g.side, 1, n, nil)
		now, _ := g.frames(t)
		super := stats().Superframes - before.Superframes
		t.Logf("--udp %s: %d datagrams in %d frames, %d superframes, %d calls", udp, n, now-was, super, calls)
		switch {
		case udp == "off" && (super > 0 || now-was < n || calls < n):
			t.Errorf("merged with --udp off")
		case udp == "on" && (super == 0 || now-was > n/4 || calls > n/4):
			t.Errorf("not merged with --udp on")
		}
	}
	before, was := stats(), uint64(0)
	_, was = g.frames(t)
	passDatagrams(t, g.side, r.net.A, 0, n, nil)
	_, now := g.frames(t)
	after := stats()
	t.Logf("%d datagrams sent in %d frames, as %d packets", n, now-was, after.TxWireFrames-before.TxWireFrames)
	if now-was > n/4 || after.TxWireFrames-before.TxWireFrames < n || len(after.TxDropped) > 0 {
		t.Errorf("sent as %d packets, dropped %v", after.TxWireFrames-before.TxWireFrames, after.TxDropped)
	}
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}
