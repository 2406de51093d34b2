package vm

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/peer"
)

// Bits of virtio-net for UDP superframes (virtio 1.3, 5.1.3).
const (
	bitGuestUSO4 = 54
	bitGuestUSO6 = 55
)

const (
	quicPort = 4433
	noUSO    = "the guest negotiated neither GUEST_USO4 nor GUEST_USO6"
)

// quic is a stream as QUIC's: datagrams of 1200 bytes in trains of 40.
var quic = control.Trains{Port: quicPort, Count: 8000, Train: 40, Size: 1200, Timeout: patience(5 * time.Second)}

// arrival is how a stream of datagrams came to a guest.
type arrival struct {
	control.Reception
	nic         frames
	ours        int // packets that came by us
	superframes int // of them
}

// overtakes is how many datagrams a change of ways may let the others overtake, beside those that the product counts (late_packets): what its
// worker, or the kernel's path, had in hand.
const overtakes = 128

// datagrams sends a stream to the guest, does something meanwhile, and wants every datagram of it, right and once, and in order but where they change
// ways: switches times by what is done meanwhile, and where a worker got no time (docs/vhost-net.md, Switching).
func (l *lab) datagrams(t *testing.T, v *VM, to string, trains control.Trains, switches int, meanwhile func()) (a arrival) {
	t.Helper()
	do(t, v, 10*time.Second, control.OpListen, control.Listen{Port: trains.Port, UDP: true}, nil)
	statsBefore, queuesBefore := l.stats(t, guestName)
	before := nic(t, v)
	received := make(chan error, 1)
	go func() { received <- v.Do(t.Context(), control.OpTrains, trains, &a.Reception) }()
	var beside sync.WaitGroup
	defer beside.Wait()
	if meanwhile != nil {
		beside.Go(meanwhile)
	}
	var sender *net.UDPConn
	err := l.a.NS.Do(func() (err error) {
		c, err := net.Dial("udp", net.JoinHostPort(to, fmt.Sprint(trains.Port)))
		if err == nil {
			sender = c.(*net.UDPConn)
		}
		return err
	})
	if err == nil {
		err = peer.SendTrains(sender, trains)
		defer sender.Close()
	}
	if err != nil {
		t.Error(err)
	}
	if err := <-received; err != nil {
		t.Error(err)
	}
	a.nic = framesBetween(before, nic(t, v))
	noErrors(t, a.nic)
	after, queues := l.stats(t, guestName)
	a.ours, a.superframes = int(after.RxPackets-statsBefore.RxPackets), int(after.Superframes-statsBefore.Superframes)
	t.Logf("%d datagrams by %d calls, at most %d at once; %d by us, %d superframes; %v", a.Datagrams, a.Calls, a.Most, a.ours, a.superframes, a.nic)
	counted, changes := int(after.LatePackets-statsBefore.LatePackets), switches+int(queues.Hangs-queuesBefore.Hangs)
	if a.Datagrams != trains.Count || a.Error != "" || a.Late > changes*overtakes+counted || a.Late > 0 && changes == 0 {
		t.Errorf("%d of %d datagrams came, %d late, %d counted as such with %d changes of ways: %s", a.Datagrams, trains.Count, a.Late, counted, changes, a.Error)
	}
	return a
}

// arriveMerged wants the datagrams in superframes. What comes while the worker gets no time has the kernel's path, alone.
func (l *lab) arriveMerged(t *testing.T, v *VM, to string) {
	t.Helper()
	a := l.datagrams(t, v, to, quic, 0, nil)
	alone := quic.Count - min(quic.Count, a.ours)
	if most := alone + a.ours/4; a.ours < quic.Count/4 || a.superframes == 0 || a.Calls > most || int(a.nic.rx) > most+100 { // 100: neighbour discovery and the like
		t.Errorf("%d datagrams by %d calls in %d frames of the NIC, %d by us: they were not merged", a.Datagrams, a.Calls, a.nic.rx, a.ours)
	}
}

// arriveAlone wants the datagrams one by one, by the kernel's path.
func (l *lab) arriveAlone(t *testing.T, v *VM, to string) {
	t.Helper()
	if a := l.datagrams(t, v, to, quic, 0, nil); a.ours != 0 || a.Most != 1 || a.Calls != a.Datagrams || int(a.nic.rx) < quic.Count {
		t.Errorf("%d datagrams by %d calls in %d frames of the NIC, %d by us: want each alone by the kernel's path", a.Datagrams, a.Calls, a.nic.rx, a.ours)
	}
}

// told waits until the tap, status and the VM's policy say whether datagrams are merged, and why they are not.
func (l *lab) told(t *testing.T, merged bool) {
	t.Helper()
	note := noUSO
	if merged {
		note = ""
	}
	var last string
	for deadline := time.Now().Add(patience(10 * time.Second)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var tap *netdev.TapFacts
		l.b.Do(t, func() (err error) {
			tap, err = netdev.InspectTap(guestTap)
			return err
		})
		var s api.Status
		var p api.PolicyResponse
		if err := json.Unmarshal([]byte(l.must("status", "-o", "json")), &s); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(l.must("policy", "get", guestName, "-o", "json")), &p); err != nil {
			t.Fatal(err)
		}
		port := s.Interfaces[0].Ports[0]
		if tap.Offloads.USO == merged && port.UDPMerged == merged && port.UDPNote == note && p.UDPMerged == merged && p.UDPNote == note &&
			slices.Contains(port.Features, "GUEST_USO4") == merged && slices.Contains(port.Features, "GUEST_USO6") == merged {
			return
		}
		last = fmt.Sprintf("tap %v, status %v %q %v, policy %v %q", tap.Offloads.USO, port.UDPMerged, port.UDPNote, port.Features, p.UDPMerged, p.UDPNote)
	}
	t.Errorf("want merged %v: %s", merged, last)
}

// A real guest whose QEMU and kernel have GUEST_USO gets the datagrams of QUIC-like streams in superframes on its own tap, in order and right to the last byte, and its
// socket takes them so, with no GRO of its own. What the guest says of it holds at once, also under a stream: by its offloads, a reload of its driver, a reboot. TCP goes on being merged beside.
func TestARealGuestTakesDatagramsMerged(t *testing.T) {
	o := needUSO(t)
	l := emptyLab(t)
	v, hello := l.bootOnTap("off", o)
	if n := nic(t, v); !n.Has(bitGuestUSO4) || !n.Has(bitGuestUSO6) {
		var major, minor int
		if _, err := fmt.Sscanf(hello.Kernel, "%d.%d", &major, &minor); err != nil {
			t.Fatal(hello.Kernel, err)
		}
		if major < 6 || major == 6 && minor < 2 {
			t.Skipf("allowed: the guest's kernel %s takes no UDP superframes (before Linux 6.2): test/vm/setup.sh newer gets one that does", hello.Kernel)
		}
		t.Fatalf("features of %s: %s", hello.Kernel, n.Features)
	}
	l.told(t, true)
	for _, f := range l.families() {
		t.Run(f.name, func(t *testing.T) { l.arriveMerged(t, v, f.guest) })
	}
	t.Run("TCP beside", func(t *testing.T) { l.bothWays(t, v, tapSome) })
	t.Run("policy", func(t *testing.T) {
		l.must("policy", "set", guestName, "--udp", "off")
		l.arriveAlone(t, v, guestIPv4)
		l.must("policy", "reset", guestName)
		l.arriveMerged(t, v, guestIPv4)
	})
	t.Run("the guest's offloads", func(t *testing.T) {
		offload := func(on bool) {
			// CTRL_GUEST_OFFLOADS: all that is larger than the MTU (drivers/net/virtio_net.c, GUEST_OFFLOAD_GRO_HW_MASK).
			do(t, v, 20*time.Second, control.OpOffload, control.Offload{Feature: "rx-gro-hw", On: on}, nil)
			l.told(t, on)
		}
		offload(false)
		l.arriveAlone(t, v, guestIPv4)
		offload(true)
		l.arriveMerged(t, v, guestIPv4)
		long := quic
		long.Count *= 10
		a := l.datagrams(t, v, guestIPv4, long, 6, func() { // under way
			for range 3 {
				offload(false)
				offload(true)
			}
		})
		if a.superframes == 0 {
			t.Error("no superframes")
		}
	})
	t.Run("a reload of the driver", func(t *testing.T) {
		reload(t, v)
		l.configure(v)
		l.told(t, true)
		l.arriveMerged(t, v, guestIPv6)
	})
	t.Run("a reboot", func(t *testing.T) {
		reboot(t, v)
		l.configure(v)
		l.told(t, true)
		l.arriveMerged(t, v, guestIPv4)
	})
	t.Log(l.must("stats", "--vm", guestName))
}

// A guest without GUEST_USO, by its kernel or by its QEMU, gets all its datagrams one by one on its own tap, by the kernel's path, and TCP merged.
func TestARealGuestWithoutUSOTakesDatagramsAlone(t *testing.T) {
	t.Run("the usual QEMU and kernel", func(t *testing.T) {
		needVM(t)
		takesAlone(t, Options{})
	})
	t.Run("guest_uso off", func(t *testing.T) {
		o := needUSO(t)
		o.Device = []string{"guest_uso4=off", "guest_uso6=off"}
		takesAlone(t, o)
	})
}

func takesAlone(t *testing.T, o Options) {
	t.Helper()
	l := emptyLab(t)
	v, hello := l.bootOnTap("off", o)
	if n := nic(t, v); n.Has(bitGuestUSO4) || n.Has(bitGuestUSO6) {
		if len(o.Device) > 0 {
			t.Fatalf("features %s", n.Features)
		}
		t.Skipf("allowed: the usual QEMU and kernel %s have GUEST_USO", hello.Kernel)
	}
	l.told(t, false)
	for _, f := range l.families() {
		l.arriveAlone(t, v, f.guest)
	}
	l.bothWays(t, v, tapSome)
}
