package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// A segment whose checksum is wrong is in no superframe: the guest gets it as it came and judges for itself.
func TestADamagedSegmentIsNeverMerged(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true, StaticNeighbors: true})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA, "--hold", "10ms"), MAC: mac(t, macA)})
	c := g.side.Capture(t)
	b := pt.TCP{DstMAC: [6]byte(mac(t, macA)), SrcMAC: [6]byte(r.net.A.MAC), Len: 1000, Src4: [4]byte{10, 77, 0, 1}, Dst4: [4]byte{10, 77, 0, 10}}
	train := b.Train(5)
	train[2].BadTCP = true
	r.net.A.Inject(t, pt.Frames(train...)...)
	bad := train[2].Frame()
	whole := c.Until(5*time.Second, func(f netnstest.Frame) bool { return bytes.Contains(f.Data, train[2].Data()) })
	if !bytes.Equal(whole.Data, bad) || whole.Partial {
		t.Errorf("the damaged segment came as %d bytes, partial checksum %t", len(whole.Data), whole.Partial)
	}
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
	if st.VMs[0].Passed["bad_tcp_checksum"] != 1 {
		t.Errorf("passed: %v", st.VMs[0].Passed)
	}
}

// Frames cut short at every byte, and lengths that lie, stop nothing and are explained.
func TestFramesCutShortStopNothing(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24", "fd77::10/64")
	in := r.net.A.Injector(t)
	for _, v6 := range []bool{false, true} {
		b := pt.TCP{V6: v6, DstMAC: [6]byte(mac(t, macA)), SrcMAC: [6]byte(r.net.A.MAC), Len: 60}
		frame := b.Frame()
		for n := 14; n <= len(frame); n++ {
			if err := in.Send(frame[:n]); err != nil {
				t.Fatal(err)
			}
		}
		for i := 14; i < len(frame)-60; i++ { // each header byte another
			lie := bytes.Clone(frame)
			lie[i] ^= 0xff
			if err := in.Send(lie); err != nil {
				t.Fatal(err)
			}
		}
	}
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, time.Minute)
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, true, time.Minute)
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
}

// An interface that carries somebody else's XDP program is refused, and the program stays.
func TestAForeignXDPProgramIsLeftAlone(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "theirs", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	var l link.Link
	r.net.B.Do(t, func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: r.net.B.Index})
		return err
	})
	out, code := r.cli("attach", r.net.B.Dev, "--vm", "x", "--mac", macA, "--vhost-user", r.dir+"/x.sock")
	if code != 1 || !strings.Contains(out, "theirs") || !strings.Contains(out, r.net.B.Dev) {
		t.Errorf("exit %d: %s", code, out)
	}
	if out := r.net.B.Output(t, "ip", "link", "show", "dev", r.net.B.Dev); !strings.Contains(out, "xdp") {
		t.Errorf("the foreign program is gone: %s", out)
	}
	// The remedy that is told is the one that works: another for a program that a link holds than for one that ip attached.
	info, err := l.Info()
	if want := fmt.Sprintf("'bpftool link detach id %d'", info.ID); err != nil || !strings.Contains(out, want) {
		t.Errorf("no %s in %s: %v", want, out, err)
	}
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []struct {
		flag int
		off  string
	}{{unix.XDP_FLAGS_SKB_MODE, "xdpgeneric off"}, {unix.XDP_FLAGS_DRV_MODE, "xdp off"}} {
		r.net.B.Do(t, func() error {
			nl, err := netlink.LinkByName(r.net.B.Dev)
			if err != nil {
				return err
			}
			return netlink.LinkSetXdpFdWithFlags(nl, prog.FD(), mode.flag)
		})
		out, _ := r.cli("attach", r.net.B.Dev, "--vm", "x", "--mac", macA, "--vhost-user", r.dir+"/x.sock")
		remedy := regexp.MustCompile(`'(ip link set dev \S+ ` + mode.off + `)'`).FindStringSubmatch(out)
		if remedy == nil {
			t.Fatalf("no %s in %s", mode.off, out)
		}
		r.net.B.Output(t, "sh", "-c", remedy[1])
		r.untouched(t)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r.eventually("the interface is free", func() error {
		if strings.Contains(r.net.B.Output(t, "ip", "link", "show", "dev", r.net.B.Dev), "xdp") {
			return errNotYet
		}
		return nil
	})
	r.untouched(t)
}

// The VM's address is in the uplink's receive filter while it is attached, and no longer.
func TestTheVMsAddressIsInTheFilterWhileAttached(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("bridge"))
	r := newRig(t, netnstest.Options{})
	in := func() bool {
		return strings.Contains(r.net.B.Output(t, "bridge", "fdb", "show", "dev", r.net.B.Dev), macA)
	}
	r.attach("vm0", macA)
	if !in() {
		t.Error("the NIC does not know the VM's address")
	}
	r.must("detach", r.net.B.Dev)
	if in() {
		t.Error("the VM's address is left in the filter")
	}
}

// One controller serves several interfaces; a VM on one hears nothing of the other, and each is given back by itself.
func TestSeveralInterfacesOfOneController(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	far := &netnstest.Side{NS: netnstest.Namespace(t), Dev: "wire1", MAC: mac(t, macC), IPv4: netip.MustParsePrefix("10.79.0.1/24")}
	r.net.B.Do(t, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up1"}, PeerName: far.Dev, PeerHardwareAddr: far.MAC, PeerNamespace: netlink.NsFd(far.NS.FD())}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return netlink.LinkSetUp(pair)
	})
	far.Do(t, func() error {
		l, err := netlink.LinkByName(far.Dev)
		if err != nil {
			return err
		}
		far.Index = l.Attrs().Index
		a, err := netlink.ParseAddr(far.IPv4.String())
		return errors.Join(err, netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
	})
	for _, feature := range []string{netdev.TxChecksum, netdev.TxVLAN} {
		far.SetOffload(t, feature, false)
	}
	a := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	sock := r.dir + "/vm1.sock"
	r.must("attach", "up1", "--vm", "vm1", "--mac", macA, "--vhost-user", sock) // the same address on another wire
	b := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.79.0.10/24")
	netnstest.Bulk(t, r.net.A, a.side, 8<<20, false, time.Minute)
	netnstest.Bulk(t, far, b.side, 8<<20, false, time.Minute)
	var f api.Flows
	r.json(&f, "flows", "--iface", "up1")
	for _, flow := range f.Flows {
		if flow.VM != "vm1" {
			t.Errorf("a flow of %s on up1", flow.VM)
		}
	}
	var st api.Stats
	r.json(&st, "stats")
	explain(t, st)
	r.must("detach", "up1")
	netnstest.Bulk(t, r.net.A, a.side, 1<<20, false, time.Minute)
}
