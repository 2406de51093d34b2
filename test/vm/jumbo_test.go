package vm

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
)

const (
	jumboMTU   = 9000
	jumboBytes = 40e6
)

// station is a guest on a wire of jumbo frames.
type station struct {
	vm         *VM
	name       string
	ipv4, ipv6 string
	mtu        int
}

// large is the lab's guest with the MTU of the wire, which QEMU has told it (NET_SET_MTU; VIRTIO_NET_F_MTU).
func large(t *testing.T, v *VM) station {
	t.Helper()
	if n := nic(t, v); !n.Has(bitMTU) || n.MTU != jumboMTU {
		t.Errorf("feature MTU %v, the guest's MTU is %d", n.Has(bitMTU), n.MTU)
	}
	return station{v, guestName, guestIPv4, guestIPv6, jumboMTU}
}

// A real guest of MTU 9000 on vhost-user, on a wire of 9000 whose frames come in several chunks (AF_XDP multi-buffer), gets superframes of jumbo segments
// and sends jumbo frames; one of 1500 on the same uplink gets superframes of 1500 and sends such frames. Both talk to each other, and nothing is lost.
func TestRealGuestsOfTwoMTUsOnAJumboWire(t *testing.T) {
	needVM(t)
	netnstest.Need(t, netnstest.Kernel(6, 6))
	l := newLabOn(t, netnstest.Options{MTU: jumboMTU})
	big := large(t, l.boot(Options{Device: []string{fmt.Sprintf("host_mtu=%d", jumboMTU)}}))
	small := l.bootSmall(t)
	t.Run("of 9000", func(t *testing.T) { l.exchange(t, big) })
	t.Run("of 1500", func(t *testing.T) { l.exchange(t, small) })
	t.Run("from 9000 to 1500", func(t *testing.T) { between(t, big, small) })
	t.Run("from 1500 to 9000", func(t *testing.T) { between(t, small, big) })
	for _, s := range []station{big, small} {
		vm, q := l.stats(t, s.name)
		if len(vm.Dropped)+len(vm.TxDropped) > 0 || q.RxTooLong+q.RxNoBuffer+q.RxBroken > 0 {
			t.Errorf("%s: dropped %v, of what it sent %v; the queue %+v", s.name, vm.Dropped, vm.TxDropped, q)
		}
	}
}

// The same on a guest's own tap, in a bridge of that MTU.
func TestARealGuestOnAJumboTap(t *testing.T) {
	needVM(t)
	netnstest.Need(t, netnstest.Kernel(6, 6))
	l := emptyLabOn(t, netnstest.Options{MTU: jumboMTU})
	v, _ := l.bootOnTap("off", Options{Device: []string{fmt.Sprintf("host_mtu=%d", jumboMTU)}})
	l.exchange(t, large(t, v))
}

// bootSmall attaches a second VM, of MTU 1500, and boots it.
func (l *lab) bootSmall(t *testing.T) station {
	t.Helper()
	const mac = "52:54:00:77:00:0a"
	s := station{name: "small", ipv4: "10.77.0.10", ipv6: "fd77::10", mtu: 1500}
	socket := filepath.Join(l.dir, "small.sock")
	l.must("attach", l.b.Dev, "--vm", s.name, "--mac", mac, "--vhost-user", socket, "--mtu", fmt.Sprint(s.mtu))
	s.vm, _ = boot(t, Options{Name: s.name, VhostUser: socket, MAC: mac, Device: []string{fmt.Sprintf("host_mtu=%d", s.mtu)}})
	do(t, s.vm, 20*time.Second, control.OpAddr, control.Addr{Addrs: []string{s.ipv4 + "/24", s.ipv6 + "/64"}}, nil)
	do(t, s.vm, 20*time.Second, control.OpOffload, control.Offload{Feature: "rx-gro", On: false}, nil)
	return s
}

// exchange has the sender and a guest talk, by packets as long as the guest's MTU and by TCP both ways, and looks at what the guest gets and what
// comes to the wire.
func (l *lab) exchange(t *testing.T, s station) {
	t.Helper()
	do(t, s.vm, 10*time.Second, control.OpEcho, control.Echo{Port: 7}, nil)
	for i, f := range l.familiesOf(s.ipv4, s.ipv6, s.mtu) {
		probe := control.Probe{To: f.guest, Size: f.full, Count: 5, Timeout: patience(5 * time.Second)}
		if r, err := l.ping(probe); err != nil || r.Answered != r.Sent {
			t.Errorf("ping of %s with %d bytes: %+v, %v", f.name, f.full, r, err)
		}
		probe.To = udpAddr(f.guest)
		if r, err := l.udp(probe); err != nil || r.Answered != r.Sent {
			t.Errorf("UDP over %s of %d bytes: %+v, %v", f.name, f.full, r, err)
		}

		seed := uint64(300 + 10*i)
		before, _ := l.stats(t, s.name)
		r, got := toGuest(t, s.vm, load{from: l.a, to: f.guest, bytes: jumboBytes, seed: seed})
		checkTransfer(t, "to the guest, "+f.name, r, seed, jumboBytes)
		noErrors(t, got)
		after, _ := l.stats(t, s.name)
		packets, merged, super := after.RxPackets-before.RxPackets, after.MergedPackets-before.MergedPackets, after.Superframes-before.Superframes
		length := float64(after.RxBytes-before.RxBytes) / float64(max(1, packets))
		t.Logf("%v; %d packets of %.0f bytes, %d of them in %d superframes", got, packets, length, merged, super)
		if got.mean() < superframes {
			t.Errorf("mean guest frame %.0f bytes, want at least %d", got.mean(), superframes)
		}
		if longest := float64(header + s.mtu); length > longest || length < longest*2/3 {
			t.Errorf("packets of %.0f bytes to a guest whose MTU is %d", length, s.mtu)
		}
		if merged < 2*super || merged < packets/2 {
			t.Errorf("%d of %d packets in %d superframes", merged, packets, super)
		}

		j := l.judge(t)
		r = fromGuest(t, s.vm, l.a, f.sender, seed+1, jumboBytes/2)
		j.result(t, jumboBytes/2)
		checkTransfer(t, "from the guest, "+f.name, r, seed+1, jumboBytes/2)
		if j.longest != header+s.mtu {
			t.Errorf("the longest frame on the wire has %d bytes, the guest's MTU is %d", j.longest, s.mtu)
		}
	}
}

// between has one guest send to another.
func between(t *testing.T, from, to station) {
	t.Helper()
	const bytes = 20e6
	do(t, to.vm, 10*time.Second, control.OpListen, control.Listen{Port: guestPort}, nil)
	for i, addr := range []string{to.ipv4, to.ipv6} {
		seed := uint64(400 + i)
		got := receiveAsync(t, to.vm, control.Receive{Port: guestPort, Timeout: transferWithin})
		var sent control.Transfer
		do(t, from.vm, transferWithin, control.OpSend,
			control.Send{To: net.JoinHostPort(addr, fmt.Sprint(guestPort)), Bytes: bytes, Seed: seed, Timeout: transferWithin}, &sent)
		checkTransfer(t, "to "+addr, <-got, seed, bytes)
	}
}
