package tapvm_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
)

const timeout = time.Minute

// host is a namespace whose stack talks to a VM through the tap itself, without a bridge.
func host(t *testing.T, o tapvm.Options) (*netnstest.Side, *tapvm.VM) {
	t.Helper()
	h := &netnstest.Side{
		NS: netnstest.Namespace(t), Dev: "tap0",
		IPv4: netip.MustParsePrefix("10.77.0.1/24"), IPv6: netip.MustParsePrefix("fd77::1/64"),
	}
	h.Sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	o.Tap, o.Host = h.Dev, h.NS
	o.IPv4, o.IPv6 = netip.MustParsePrefix("10.77.0.2/24"), netip.MustParsePrefix("fd77::2/64")
	vm := tapvm.Start(t, o)
	h.Index = vm.Index
	h.Do(t, func() error {
		l, err := netlink.LinkByIndex(vm.Index)
		if err != nil {
			return err
		}
		for _, p := range []netip.Prefix{h.IPv4, h.IPv6} {
			n := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			a := &netlink.Addr{IPNet: n}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return nil
	})
	return h, vm
}

// engines are the ones this machine can run; a test that leaves one out says so.
func engines(t *testing.T, test func(t *testing.T, e tapvm.Engine)) {
	for _, e := range []tapvm.Engine{tapvm.Userspace, tapvm.Vhost} {
		t.Run(e.String(), func(t *testing.T) { test(t, e) })
	}
}

func TestATransferIsWholeInBothDirections(t *testing.T) {
	engines(t, func(t *testing.T, e tapvm.Engine) {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("IPv6 %v", v6), func(t *testing.T) {
				h, vm := host(t, tapvm.Options{Engine: e})
				netnstest.Bulk(t, h, vm.Guest, 8<<20, v6, timeout)
				s := vm.Stats()
				if s.DataBytes < 8<<20 || s.Superframes == 0 || s.MeanDataFrame() < 5000 {
					t.Errorf("to the guest: %+v; want superframes", s)
				}
				if s.Buffers <= s.Frames {
					t.Errorf("%d buffers for %d frames", s.Buffers, s.Frames)
				}
				netnstest.Bulk(t, vm.Guest, h, 8<<20, v6, timeout)
				if s := vm.Stats(); s.TxBytes < 8<<20 {
					t.Errorf("from the guest: %+v", s)
				}
			})
		}
	})
}

func TestAGuestWithoutOffloadsGetsSegments(t *testing.T) {
	engines(t, func(t *testing.T, e tapvm.Engine) {
		for _, without := range []tapvm.Offload{tapvm.TSO4 | tapvm.TSO6 | tapvm.ECN, tapvm.AllOffloads} {
			t.Run(fmt.Sprintf("without %#x", uint(without)), func(t *testing.T) {
				h, vm := host(t, tapvm.Options{Engine: e, Without: without})
				netnstest.Bulk(t, h, vm.Guest, 2<<20, false, timeout)
				netnstest.Bulk(t, vm.Guest, h, 2<<20, true, timeout)
				if s := vm.Stats(); s.Superframes != 0 || s.Largest > 1514 {
					t.Errorf("%+v; want segments", s)
				}
			})
		}
	})
}

func TestATapWithoutHeaderWorksUnaided(t *testing.T) {
	h, vm := host(t, tapvm.Options{NoHeader: true})
	netnstest.Bulk(t, h, vm.Guest, 2<<20, false, timeout)
	netnstest.Bulk(t, vm.Guest, h, 2<<20, true, timeout)
	if s := vm.Stats(); s.Superframes != 0 || s.Largest > 1514 {
		t.Errorf("%+v; want segments", s)
	}
}

// The offloads change under the load, and no frame is ever one that the guest did not ask for.
func TestOffloadsSwitchUnderLoad(t *testing.T) {
	engines(t, func(t *testing.T, e tapvm.Engine) {
		h, vm := host(t, tapvm.Options{Engine: e})
		end := make(chan struct{})
		var switches atomic.Int32
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				case <-time.After(30 * time.Millisecond):
				}
				if err := vm.SetOffload([]tapvm.Offload{0, tapvm.AllOffloads, tapvm.CSUM}[n%3]); err != nil {
					t.Error(err)
				}
				switches.Add(1)
			}
		})
		for switches.Load() < 6 {
			netnstest.Bulk(t, h, vm.Guest, 4<<20, false, timeout)
		}
		close(end)
		wg.Wait()
		if s := vm.Stats(); s.Superframes == 0 || s.Superframes == s.Frames {
			t.Errorf("%+v; want both kinds of frames", s)
		}
	})
}

func TestAKilledVMLeavesNothing(t *testing.T) {
	engines(t, func(t *testing.T, e tapvm.Engine) {
		h, vm := host(t, tapvm.Options{Engine: e})
		netnstest.Bulk(t, h, vm.Guest, 1<<20, false, timeout)
		vm.Kill()
		vm.Kill()
		for _, s := range []*netnstest.Side{h, vm.Guest} {
			err := s.NS.Do(func() error {
				_, err := netlink.LinkByName(s.Dev)
				return err
			})
			if !errors.As(err, new(netlink.LinkNotFoundError)) {
				t.Errorf("%s: %v, want it to be gone", s.Dev, err)
			}
		}
	})
}

func TestADeletedTapEndsTheVM(t *testing.T) {
	engines(t, func(t *testing.T, e tapvm.Engine) {
		h, vm := host(t, tapvm.Options{Engine: e})
		h.Do(t, func() error {
			l, err := netlink.LinkByIndex(vm.Index)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
		select {
		case <-vm.Done():
		case <-time.After(timeout):
			t.Fatal("still running")
		}
		if err := vm.Err(); !errors.Is(err, tapvm.ErrTapGone) {
			t.Errorf("%v, want ErrTapGone", err)
		}
	})
}

// A tap that somebody made before, as libvirt does, is used and stays.
func TestAPersistentTapIsTakenAndStays(t *testing.T) {
	ns := netnstest.Namespace(t)
	side := &netnstest.Side{NS: ns, Dev: "tap0"}
	side.Do(t, func() error {
		tap, err := tapvm.OpenTap("tap0", 12, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.IoctlSetInt(tap.FD, unix.TUNSETPERSIST, 1), tap.Close())
	})
	for range 2 {
		tapvm.Start(t, tapvm.Options{Tap: "tap0", Host: ns}).Kill()
		side.Do(t, func() error {
			_, err := netlink.LinkByName("tap0")
			return err
		})
	}
}

// Links go down and up under a VM.
func TestATapThatIsDownForAWhileWorksAgain(t *testing.T) {
	engines(t, func(t *testing.T, e tapvm.Engine) {
		h, vm := host(t, tapvm.Options{Engine: e})
		for _, up := range []bool{false, true} {
			h.Do(t, func() error {
				l, err := netlink.LinkByIndex(vm.Index)
				if err != nil {
					return err
				}
				if up {
					return netlink.LinkSetUp(l)
				}
				return netlink.LinkSetDown(l)
			})
			time.Sleep(50 * time.Millisecond) // the loop meets the link as it is
		}
		netnstest.Bulk(t, h, vm.Guest, 1<<20, false, timeout)
	})
}
