package netdev_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/vishvananda/netlink"
)

// waitRunning waits until a side's interface has a carrier.
func waitRunning(t *testing.T, s *netnstest.Side) {
	t.Helper()
	h := in(t, s)
	for range 500 {
		if inspect(t, h, s.Dev).Running {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no carrier within five seconds")
}

func watch(t *testing.T, s *netnstest.Side, interval time.Duration) *netdev.Watcher {
	t.Helper()
	var w *netdev.Watcher
	s.Do(t, func() (err error) { w, err = netdev.NewWatcherEvery(interval); return err })
	t.Cleanup(func() { w.Close() })
	f, err := w.Add(s.Dev)
	if err != nil || f.Index != s.Index {
		t.Fatalf("%+v, %v", f, err)
	}
	return w
}

// until passes over events of other kinds: one command may cause several.
func until(t *testing.T, w *netdev.Watcher, k netdev.EventKind) netdev.Event {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case e, ok := <-w.Events():
			if !ok {
				t.Fatalf("the channel was closed while waiting for %q", k)
			}
			if e.Kind == k {
				return e
			}
		case <-timeout:
			t.Fatalf("no %q within ten seconds", k)
		}
	}
}

// never is an interval that a test does not live to see: what is found was announced.
const never = time.Hour

func TestChangesAreAnnounced(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("ip"))
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	w := watch(t, n.B, never)
	ip := func(args ...string) { n.B.Output(t, "ip", append([]string{"link"}, args...)...) }
	ip("set", n.B.Dev, "mtu", "1400")
	if e := until(t, w, netdev.MTUChanged); e.Was.MTU != 1500 || e.Now.MTU != 1400 || e.Index != n.B.Index {
		t.Errorf("%+v", e)
	}
	ip("set", n.B.Dev, "address", "02:00:00:00:00:77")
	until(t, w, netdev.MACChanged)
	ip("set", n.B.Dev, "down")
	until(t, w, netdev.Down)
	ip("set", n.B.Dev, "name", "other")
	if e := until(t, w, netdev.Renamed); e.Now.Name != "other" || e.Index != n.B.Index {
		t.Errorf("%+v", e)
	}
	ip("set", "other", "up")
	until(t, w, netdev.Up)
	until(t, w, netdev.CarrierOn) // or else the next step could come before it and undo it unseen
	n.A.Output(t, "ip", "link", "set", n.A.Dev, "down")
	until(t, w, netdev.CarrierOff)
	n.A.Output(t, "ip", "link", "set", n.A.Dev, "up")
	until(t, w, netdev.CarrierOn)
	detach := passXDP(t, n.B, 0)
	w.Check() // a BPF link announces nothing
	if e := until(t, w, netdev.XDPChanged); !e.Now.XDP.Attached {
		t.Errorf("%+v", e.Now)
	}
	detach()
	w.Check()
	if e := until(t, w, netdev.XDPChanged); e.Now.XDP.Attached {
		t.Errorf("%+v", e.Now)
	}
	ip("delete", "other")
	if e := until(t, w, netdev.Gone); e.Index != n.B.Index || e.Now != nil || e.Was.Name != "other" {
		t.Errorf("%+v", e)
	}
}

func TestAMasterIsAnnounced(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	w := watch(t, n.B, never)
	addBridge(t, n.B, "br0")
	if e := until(t, w, netdev.MasterChanged); e.Now.Master != "br0" {
		t.Errorf("%+v", e.Now)
	}
}

func TestAnInterfaceThatMovesAwayIsGone(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	w := watch(t, n.B, never)
	n.B.Do(t, func() error {
		l, err := netlink.LinkByIndex(n.B.Index)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, netnstest.Namespace(t).FD())
	})
	until(t, w, netdev.Gone)
}

func TestAQueueCountChangedByIoctlIsFoundInTime(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	w := watch(t, n.B, 20*time.Millisecond)
	if err := in(t, n.B).SetChannels(n.B.Dev, 1, 2); err != nil {
		t.Fatal(err)
	}
	if e := until(t, w, netdev.QueuesChanged); e.Was.RxQueues != 2 || e.Now.RxQueues != 1 {
		t.Errorf("%+v, %+v", e.Was, e.Now)
	}
}

func TestAQueueCountChangedByEthtoolIsAnnounced(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("ethtool"))
	n := netnstest.Pair(t, netnstest.Options{Queues: 2})
	w := watch(t, n.B, never)
	n.B.Output(t, "ethtool", "-L", n.B.Dev, "rx", "1")
	until(t, w, netdev.QueuesChanged)
}

func TestWhatIsNotWatchedIsNotReported(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	w := watch(t, n.B, never)
	set := func(mtu int) {
		n.B.Do(t, func() error {
			l, err := netlink.LinkByIndex(n.B.Index)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, mtu)
		})
	}
	w.Remove(n.B.Index)
	set(1300)
	if _, err := w.Add(n.B.Dev); err != nil {
		t.Fatal(err)
	}
	set(1200)
	if e := until(t, w, netdev.MTUChanged); e.Was.MTU != 1300 || e.Now.MTU != 1200 {
		t.Errorf("%d to %d", e.Was.MTU, e.Now.MTU)
	}
}

// Two thousand changes nobody reads: the watcher must come to the last state, whatever messages were lost on the way.
func TestTheLastStateArrivesThroughAFlood(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	w := watch(t, n.B, never)
	n.B.Do(t, func() error {
		l, err := netlink.LinkByIndex(n.B.Index)
		if err != nil {
			return err
		}
		for i := range 2000 {
			if err := netlink.LinkSetMTU(l, 1000+i%400); err != nil {
				return fmt.Errorf("mtu: %w", err)
			}
		}
		return netlink.LinkSetMTU(l, 1499)
	})
	for until(t, w, netdev.MTUChanged).Now.MTU != 1499 {
		continue
	}
}

func TestAWatcherEndsWithItsEventsUnread(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	w := watch(t, n.B, time.Millisecond)
	h := in(t, n.B)
	for i := range 40 {
		n.B.Do(t, func() error {
			l, err := netlink.LinkByIndex(n.B.Index)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, 1000+i)
		})
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for range w.Events() { // ends: it is closed
		continue
	}
	inspect(t, h, n.B.Dev) // another handle does not notice
}

func TestWatchingNeedsAnInterface(t *testing.T) {
	w, err := netdev.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Add("rscnone0"); err == nil {
		t.Error("it watches what is not there")
	}
}
