package vm

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
)

// The kernel's own tap, without us in the path, shows that the harness measures what it claims to: a guest that is sent
// superframes counts large frames, one that is sent segments counts small ones. It is also what our rates compare with.
func TestTheGuestCountsFramesAsTheyArrive(t *testing.T) {
	needVM(t)
	netnstest.Need(t, netnstest.TAP)
	side := &netnstest.Side{NS: netnstest.Namespace(t), Dev: "tap0", IPv4: netip.MustParsePrefix("10.78.0.1/24")}
	v, _ := boot(t, Options{Name: "tap", NS: side.NS, Netdev: "tap,ifname=tap0,script=no,downscript=no,vhost=off"})
	side.Do(t, func() error { return up(side) })
	do(t, v, 10*time.Second, control.OpAddr, control.Addr{Addrs: []string{"10.78.0.2/24"}}, nil)
	do(t, v, 10*time.Second, control.OpOffload, control.Offload{Feature: "rx-gro", On: false}, nil)

	const bytes = 100e6
	for _, count := range []bool{false, true} {
		r, f := toGuest(t, v, load{from: side, to: "10.78.0.2", bytes: bytes, seed: 1, count: count})
		if count {
			t.Logf("superframes, without hashing: %.0f Mb/s; %v", r.BitsPerSecond()/1e6, f)
			continue
		}
		checkTransfer(t, "superframes", r, 1, bytes)
		t.Log(f)
		if f.mean() < 15000 {
			t.Errorf("sent superframes, the guest counted %v", f)
		}
	}
	side.Do(t, func() error { return netdev.SetOffload(side.Dev, "tso", false) })
	const few = 30e6
	for _, count := range []bool{false, true} {
		r, f := toGuest(t, v, load{from: side, to: "10.78.0.2", bytes: few, seed: 2, count: count})
		if count {
			t.Logf("segments, without hashing: %.0f Mb/s; %v", r.BitsPerSecond()/1e6, f)
			continue
		}
		checkTransfer(t, "segments", r, 2, few)
		t.Log(f)
		if f.mean() > 1514 {
			t.Errorf("sent segments, the guest counted %v", f)
		}
	}
	checkTransfer(t, "from the guest", fromGuest(t, v, side, "10.78.0.1", 3, few), 3, few)
}

func up(s *netnstest.Side) error {
	l, err := netlink.LinkByName(s.Dev)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(s.IPv4.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}
