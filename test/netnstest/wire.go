package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/netdev"
)

// WireEnv names two network devices with a wire between them, "eth0,eth1", which every Pair takes instead of a veth pair: the first
// one is A's. They lie in the namespace of the test, and come back there.
const WireEnv = "RSCCTL_WIRE"

// Wired says that pairs are real network devices.
func Wired() bool { return os.Getenv(WireEnv) != "" }

// takeWire moves the devices of WireEnv into the namespaces, with the MAC addresses, queues and offloads that a new veth pair would have.
func (n *Network) takeWire(t testing.TB, o Options) error {
	a, b, ok := strings.Cut(os.Getenv(WireEnv), ",")
	if !ok {
		return fmt.Errorf("%s=%s: two devices with a comma between", WireEnv, a)
	}
	n.A.Dev, n.B.Dev = a, b
	for _, s := range []*Side{n.A, n.B} {
		if err := s.takeDevice(t, o); err != nil {
			return fmt.Errorf("%s: %w", s.Dev, err)
		}
	}
	return nil
}

// takeDevice runs in the namespace of the test.
func (s *Side) takeDevice(t testing.TB, o Options) error {
	home, err := current()
	if err != nil {
		return err
	}
	t.Cleanup(func() { home.Close() })
	l, err := returned(s.Dev)
	if err != nil {
		return err
	}
	for _, set := range []func() error{
		func() error { return netlink.LinkSetDown(l) },
		func() error { return netlink.SetPromiscOff(l) },
		func() error { return netlink.LinkSetHardwareAddr(l, s.MAC) },
		func() error { return netlink.LinkSetMTU(l, o.MTU) },
		func() error { return setQueues(s.Dev, o.Queues) },
		func() error { return netlink.LinkSetAllmulticastOn(l) }, // a veth filters none
	} {
		if err := set(); err != nil {
			return err
		}
	}
	// Some drivers have both offloads of tags or none, by the one for what comes in.
	for _, set := range []struct {
		feature string
		on      bool
	}{{netdev.RxVLAN, o.KeepTxVLAN}, {netdev.TxVLAN, o.KeepTxVLAN}, {netdev.TxChecksum, true}, {"tso", true}, {"gso", true}} {
		err := netdev.SetOffload(s.Dev, set.feature, set.on)
		if errors.Is(err, netdev.ErrFixed) && set.feature == netdev.TxChecksum {
			break // then there is no segmentation either (netdev_fix_features): Linux does both
		}
		if err != nil {
			return err
		}
	}
	if err := netlink.LinkSetNsFd(l, s.NS.FD()); err != nil {
		return err
	}
	t.Cleanup(func() {
		err := s.NS.Do(func() error {
			if err := netlink.LinkSetDown(l); err != nil {
				return err
			}
			return netlink.LinkSetNsFd(l, home.FD())
		})
		if err != nil {
			t.Errorf("%s: back to where it was: %v", s.Dev, err)
		}
	})
	return nil
}

// returned waits for a device: the kernel gives back those of a dead test's namespace from a work queue.
func returned(name string) (l netlink.Link, err error) {
	for range 200 {
		if l, err = netlink.LinkByName(name); err == nil {
			return l, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

// setQueues leaves a device alone that has that many: a change makes it anew.
func setQueues(name string, queues int) error {
	now, err := netdev.Inspect(name)
	if err != nil || now.RxQueues == queues {
		return err
	}
	if out, err := exec.Command("ethtool", "-L", name, "combined", strconv.Itoa(queues)).CombinedOutput(); err != nil {
		return fmt.Errorf("ethtool -L combined %d: %w: %s", queues, err, out)
	}
	return nil
}
