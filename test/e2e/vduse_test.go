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
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vduse"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// driverGuest is a guest whose driver is this kernel's own virtio-net, in a namespace of its own.
type driverGuest struct {
	*vduse.Device
	t    *testing.T
	side *netnstest.Side
}

// bootDriver has this kernel's driver take a device whose back-end is at the socket.
func (r *rig) bootDriver(socket, address string) *driverGuest {
	r.t.Helper()
	g := &driverGuest{t: r.t, side: &netnstest.Side{NS: netnstest.Namespace(r.t), MAC: mac(r.t, address)}}
	ctx, cancel := context.WithTimeout(context.Background(), netnstest.Patience(10*time.Second))
	defer cancel()
	var err error
	if g.Device, err = vduse.Open(ctx, vduse.Config{Name: fmt.Sprintf("rsct%d", os.Getpid()), Socket: socket, MAC: g.side.MAC}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := g.Close(); err != nil {
			r.t.Error(err)
		}
	})
	g.take()
	return g
}

// take moves the driver's interface to the guest's namespace and sets it up. Its GRO is off: whatever comes merged was merged by the product.
func (g *driverGuest) take() {
	g.t.Helper()
	name, err := g.Interface()
	if err != nil {
		g.t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := netlink.LinkSetNsFd(link, g.side.NS.FD()); err != nil {
		g.t.Fatal(err)
	}
	g.side.Dev = name
	g.side.Do(g.t, func() error { return bringUp(g.side, "10.77.0.10/24", "fd77::10/64") })
	g.side.SetOffload(g.t, "gro", false)
	g.side.Do(g.t, func() error {
		return netdev.With(func(h *netdev.Handle) error {
			for _, feature := range []string{"rx-gro", "rx-gro-hw", "rx-udp-gro-forwarding", "tx-tcp-segmentation", "tx-udp-segmentation"} {
				on, fixed, err := h.Offload(name, feature)
				if err != nil {
					return err
				}
				g.t.Logf("%s: on %v, fixed %v", feature, on, fixed)
			}
			return nil
		})
	})
	// Off from the start in drivers before Linux 6.17.
	g.side.SetOffload(g.t, "tx-udp-segmentation", true)
}

// frames says how many frames the driver receives and sends while something happens.
func (g *driverGuest) frames(during func()) (received, sent uint64) {
	g.t.Helper()
	now := func() (rx, tx uint64) {
		g.side.Do(g.t, func() error {
			l, err := netlink.LinkByName(g.side.Dev)
			if err == nil {
				rx, tx = l.Attrs().Statistics.RxPackets, l.Attrs().Statistics.TxPackets
			}
			return err
		})
		return rx, tx
	}
	rx, tx := now()
	during()
	received, sent = now()
	return received - rx, sent - tx
}

// exchange passes TCP both ways, in superframes. How many a slow machine makes of it is its own affair: the holds are short.
func (g *driverGuest) exchange(peer *netnstest.Side) {
	const bytes, packets = 4 << 20, 4 << 20 / 1460
	for _, v6 := range []bool{false, true} {
		if received, _ := g.frames(func() { netnstest.Bulk(g.t, peer, g.side, bytes, v6, time.Minute) }); received > packets*9/10 {
			g.t.Errorf("IPv6 %v: %d packets of TCP came in %d frames", v6, packets, received)
		}
		if _, sent := g.frames(func() { netnstest.Bulk(g.t, g.side, peer, bytes, v6, time.Minute) }); sent > packets*9/10 {
			g.t.Errorf("IPv6 %v: %d packets of TCP went in %d frames", v6, packets, sent)
		}
	}
}

// Linux's own virtio-net driver takes what it said that it may be given, and gives what it was told that it may: superframes of TCP and of UDP, both
// ways, also when it is loaded again. QEMU carries the features of UDP to no vhost-user back-end; VDUSE does.
func TestTheKernelsDriverTakesSuperframesOfUDP(t *testing.T) {
	if !netnstest.Emulated() {
		t.Skip("allowed: the interface appears in the first network namespace, where tests have no business but in the VM of test/hostvm")
	}
	if err := netnstest.Device(vduse.Control).Check(); err != nil {
		t.Skipf("allowed: this kernel has no VDUSE: another one shows it (docs/testing.md, RSCCTL_VM_KERNEL): %v", err)
	}
	netnstest.Need(t, netnstest.Kernel(6, 2)) // no driver took superframes of UDP before
	r := newRig(t, netnstest.Options{})
	g := r.bootDriver(r.attach("vm0", macA), macA)
	t.Logf("the driver accepted %s", strings.Join(g.Features().Names(), " "))
	if want := virtio.Mask(virtio.FGuestUSO4, virtio.FGuestUSO6, virtio.FHostUSO, virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FMrgRxbuf); g.Features()&want != want {
		t.Fatalf("the driver did not accept %v", (want &^ g.Features()).Names())
	}
	stats := func() api.VMStats {
		t.Helper()
		var s api.Stats
		r.json(&s, "stats")
		if s.Unexplained != 0 || len(s.VMs[0].TxDropped) > 0 {
			t.Errorf("unexplained %d, dropped %v", s.Unexplained, s.VMs[0].TxDropped)
		}
		return s.VMs[0]
	}
	g.exchange(r.net.A)
	n := streamLen()
	for _, v6 := range []bool{false, true} {
		for _, c := range []struct {
			udp string
			gro int // of the socket: without, the guest's kernel cuts what comes
		}{{"off", 1}, {"on", 1}, {"on", 0}} {
			r.must("policy", "set", "vm0", "--udp", c.udp)
			before, calls := stats().Superframes, uint64(0)
			frames, _ := g.frames(func() { calls = passDatagrams(t, r.net.A, g.side, stream{datagrams: n, v6: v6, gro: c.gro}, nil) })
			super := stats().Superframes - before
			t.Logf("IPv6 %v, --udp %s, UDP_GRO %d: %d datagrams came in %d frames, by %d calls; %d superframes", v6, c.udp, c.gro, n, frames, calls, super)
			switch {
			case c.udp == "off" && (super > 0 || calls < n):
				t.Error("merged with --udp off")
			case c.udp == "on" && (super == 0 || frames > n/2 || c.gro == 1 && calls > n/2):
				t.Error("not merged with --udp on")
			}
		}
		before := stats().TxWireFrames
		_, frames := g.frames(func() { passDatagrams(t, g.side, r.net.A, stream{datagrams: n, v6: v6}, nil) })
		if t.Logf("IPv6 %v: %d datagrams went in %d frames", v6, n, frames); frames > n/4 {
			t.Error("not sent whole")
		}
		r.eventually("they were cut for the wire", func() error {
			if packets := stats().TxWireFrames - before; packets < n {
				return fmt.Errorf("%d packets", packets)
			}
			return nil
		})
	}
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	g.take()
	g.exchange(r.net.A)
	passDatagrams(t, r.net.A, g.side, stream{datagrams: n, gro: 1}, nil)
	stats()
}
