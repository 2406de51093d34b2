package netdev_test

import (
	"compress/gzip"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// silence fails the test when an event of a kind comes.
func silence(t *testing.T, w *netdev.Watcher, k netdev.EventKind) {
	t.Helper()
	quiet := time.After(300 * time.Millisecond)
	for {
		select {
		case e := <-w.Events():
			if e.Kind == k {
				t.Errorf("%q out of nothing", k)
			}
		case <-quiet:
			return
		}
	}
}

// Rules that come or go are announced, whoever makes them: TC filters and queueing disciplines here, nftables below.
func TestChangedTCRulesAreAnnounced(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	w := watch(t, n.B, never)
	silence(t, w, netdev.RulesChanged)
	clsact := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: n.B.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact"}
	n.B.Do(t, func() error { return netlink.QdiscAdd(clsact) })
	if e := until(t, w, netdev.RulesChanged); e.Index != 0 || e.Was != nil || e.Now != nil {
		t.Errorf("%+v", e)
	}
	n.B.Do(t, func() error { return netlink.QdiscDel(clsact) })
	until(t, w, netdev.RulesChanged)
}

func TestChangedNftablesRulesAreAnnounced(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	w := watch(t, n.B, never)
	n.B.Do(t, func() error { nft{family: unix.NFPROTO_BRIDGE, hook: 2, rules: 3}.add(t); return nil })
	until(t, w, netdev.RulesChanged)
}

// An interface that nobody watches is news, too: a VM's tap may be back.
func TestNewInterfacesAreAnnounced(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	w := watch(t, n.B, never)
	n.B.Do(t, func() error { return addVeth("new0", "new1") })
	until(t, w, netdev.LinksChanged)
}

func TestOffloadsThatChangeAreAnnounced(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	n.B.SetOffload(t, netdev.RxVLAN, false)
	w := watch(t, n.B, never)
	n.B.SetOffload(t, netdev.RxVLAN, true)
	if e := until(t, w, netdev.OffloadsChanged); e.Was.RxVLAN || !e.Now.RxVLAN {
		t.Errorf("%+v, %+v", e.Was, e.Now)
	}
}

// An offload is put back at the interface where it was changed, whatever that is called now, and at no other.
func TestAChangeIsUndoneByIndexAndPermanentAddress(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	h := in(t, n.B)
	id, err := h.Identify(n.B.Dev)
	if err != nil || id.Index != n.B.Index || id.Boot == "" {
		t.Fatalf("%+v, %v", id, err)
	}
	plan, err := h.PlanOffload(n.B.Dev, netdev.RxVLAN, false)
	if on, _, _ := h.Offload(n.B.Dev, netdev.RxVLAN); err != nil || len(plan.Was) == 0 || !on {
		t.Fatalf("%+v, %v, on %t: a plan changes nothing and says what there is to undo", plan, err, on)
	}
	if _, err := h.ChangeOffload(n.B.Dev, netdev.RxVLAN, false); err != nil {
		t.Fatal(err)
	}
	n.B.Do(t, func() error {
		l, err := netlink.LinkByIndex(n.B.Index)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "other"), addVeth(n.B.Dev, "peer0"))
	})
	name, err := h.NameOf(id)
	if err != nil || name != "other" {
		t.Fatalf("%q, %v", name, err)
	}
	if err := h.UndoOffload(name, plan); err != nil {
		t.Error(err)
	}
	if on, _, err := h.Offload("other", netdev.RxVLAN); err != nil || !on {
		t.Errorf("on %t, %v", on, err)
	}
	for what, other := range map[string]netdev.Identity{
		"another boot":              {Index: id.Index, Boot: "x"},
		"another permanent address": {Index: id.Index, Boot: id.Boot, Permanent: "02:00:00:00:00:01"},
		"no such index":             {Index: 4711, Boot: id.Boot},
	} {
		if name, err := h.NameOf(other); !errors.Is(err, netdev.ErrNoDevice) {
			t.Errorf("%s: %q, %v", what, name, err)
		}
	}
}

// What is built into the kernel is known by the list of its modules, or else by its configuration.
func TestBuiltInTablesAreKnown(t *testing.T) {
	dir := t.TempDir()
	list, config := dir+"/modules.builtin", dir+"/config.gz"
	is := func(want bool, what string) {
		t.Helper()
		if got := netdev.BuiltInBy(list, config, "ebtable_filter", "BRIDGE_EBT_T_FILTER"); got != want {
			t.Errorf("%s: %t", what, got)
		}
	}
	is(true, "nothing is known: it is asked for")
	write := func(text string) {
		f, err := os.Create(config)
		if err != nil {
			t.Fatal(err)
		}
		z := gzip.NewWriter(f)
		if _, err := z.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(z.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write("CONFIG_BRIDGE=y\nCONFIG_BRIDGE_EBT_T_FILTER=y\n")
	is(true, "built in by the configuration")
	write("CONFIG_BRIDGE=y\nCONFIG_BRIDGE_EBT_T_FILTER=m\n")
	is(false, "a module by the configuration")
	for text, want := range map[string]bool{"kernel/net/bridge/netfilter/ebtable_filter.ko\n": true, "kernel/net/bridge/bridge.ko\n": false} {
		if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		is(want, text)
	}
}
