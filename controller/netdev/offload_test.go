package netdev_test

import (
	"encoding/json"
	"errors"
	"maps"
	"testing"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

func TestAnOffloadIsSwitchedAndPutBack(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true, KeepTxVLAN: true, KeepTSO: true})
	h := in(t, n.A)
	for _, feature := range []string{netdev.TxChecksum, "tx", netdev.TxVLAN, "txvlan", netdev.RxVLAN, "rx-vlan-hw-parse", "tso", "gro"} {
		before, fixed, err := h.Offload(n.A.Dev, feature)
		if err != nil || fixed {
			t.Errorf("%s: fixed %v, %v", feature, fixed, err)
			continue
		}
		c, err := h.ChangeOffload(n.A.Dev, feature, !before)
		if err != nil || len(c.Was) == 0 {
			t.Errorf("%s: change: %+v, %v", feature, c, err)
		}
		if on, _, err := h.Offload(n.A.Dev, feature); err != nil || on == before {
			t.Errorf("%s: still %v, %v", feature, on, err)
		}
		if again, err := h.ChangeOffload(n.A.Dev, feature, !before); err != nil || len(again.Was) != 0 {
			t.Errorf("%s: the same again: %+v, %v", feature, again, err)
		}
		// The change outlives the process that made it.
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var stored netdev.Change
		if err := json.Unmarshal(text, &stored); err != nil {
			t.Fatal(err)
		}
		if err := h.UndoOffload(n.A.Dev, stored); err != nil {
			t.Errorf("%s: undo: %v", feature, err)
		}
		if on, _, err := h.Offload(n.A.Dev, feature); err != nil || on != before {
			t.Errorf("%s: after undo %v, %v", feature, on, err)
		}
	}
}

func TestUndoRestoresEveryBitAsItWas(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true, KeepTSO: true})
	h := in(t, n.A)
	// Half of the group is off before: undo must not switch it on.
	if err := n.A.NS.Do(func() error { return netdev.SetOffload(n.A.Dev, "tx-tcp6-segmentation", false) }); err != nil {
		t.Fatal(err)
	}
	c, err := h.ChangeOffload(n.A.Dev, "tso", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.UndoOffload(n.A.Dev, c); err != nil {
		t.Fatal(err)
	}
	for feature, want := range map[string]bool{"tx-tcp-segmentation": true, "tx-tcp6-segmentation": false} {
		if on, _, err := h.Offload(n.A.Dev, feature); err != nil || on != want {
			t.Errorf("%s: %v, %v", feature, on, err)
		}
	}
}

func TestFixedOffloadsAreSaidToBe(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	h := in(t, n.A)
	on, fixed, err := h.Offload(n.A.Dev, netdev.LRO)
	if err != nil || on || !fixed {
		t.Errorf("veth has no LRO: on %v, fixed %v, %v", on, fixed, err)
	}
	if _, err := h.ChangeOffload(n.A.Dev, netdev.LRO, true); !errors.Is(err, netdev.ErrFixed) {
		t.Errorf("switching it on: %v", err)
	}
	if c, err := h.ChangeOffload(n.A.Dev, netdev.LRO, false); err != nil || len(c.Was) != 0 {
		t.Errorf("it is off: %+v, %v", c, err)
	}
	if _, _, err := h.Offload(n.A.Dev, "no-such-thing"); !errors.Is(err, netdev.ErrNoFeature) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestThePeerOfAVeth(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true})
	h := in(t, n.B)
	p, err := h.VethPeer(n.B.Dev)
	if err != nil || !p.Reachable || p.Name != n.A.Dev || p.Index != n.A.Index || p.NSPath != n.A.NS.Path() {
		t.Fatalf("in a named namespace: %+v, %v", p, err)
	}
	on, fixed, err := p.Offload(netdev.TxChecksum)
	if err != nil || !on || fixed {
		t.Errorf("its checksum offload: on %v, fixed %v, %v", on, fixed, err)
	}
	c, err := p.ChangeOffload(netdev.TxChecksum, false)
	if err != nil {
		t.Fatal(err)
	}
	if on, _, err := in(t, n.A).Offload(n.A.Dev, netdev.TxChecksum); err != nil || on {
		t.Errorf("changed from the other side: %v, %v", on, err)
	}
	if err := p.UndoOffload(c); err != nil {
		t.Fatal(err)
	}
	if on, _, err := p.Offload(netdev.TxChecksum); err != nil || !on {
		t.Errorf("put back from the other side: %v, %v", on, err)
	}
}

func TestThePeerInTheSameNamespace(t *testing.T) {
	netnstest.Need(t)
	ns := netnstest.Namespace(t)
	err := ns.Do(func() error {
		if err := addVeth("va", "vb"); err != nil {
			return err
		}
		p, err := netdev.VethPeer("va")
		if err != nil || !p.Reachable || p.Name != "vb" || p.NSPath != "" {
			t.Errorf("%+v, %v", p, err)
			return err
		}
		if _, err := p.ChangeOffload(netdev.TxChecksum, false); err != nil {
			return err
		}
		if on, _, err := netdev.Offload("vb", netdev.TxChecksum); err != nil || on {
			t.Errorf("still on: %v", err)
		}
		if on, _, err := netdev.Offload("va", netdev.TxChecksum); err != nil || !on {
			t.Errorf("the wrong end was changed: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPeerInANamelessNamespaceIsOutOfReach(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{})
	h := in(t, n.B)
	hideName(t, n.A.NS)
	p, err := h.VethPeer(n.B.Dev)
	if err != nil || p.Reachable || p.NSPath != "" || p.Index != n.A.Index {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, _, err := p.Offload(netdev.TxChecksum); !errors.Is(err, netdev.ErrUnreachable) {
		t.Errorf("its offload: %v", err)
	}
}

// Whatever is changed, and by whomever, one look from before puts it all back.
func TestAllOffloadsArePutBack(t *testing.T) {
	n := netnstest.Pair(t, netnstest.Options{KeepTxChecksum: true, KeepTSO: true})
	h := in(t, n.A)
	before, err := h.Offloads(n.A.Dev)
	if err != nil || len(before.Was) == 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	for _, feature := range []string{"tso", netdev.TxVLAN, "gro"} {
		on, _, err := h.Offload(n.A.Dev, feature)
		if err == nil {
			_, err = h.ChangeOffload(n.A.Dev, feature, !on)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := h.UndoOffload(n.A.Dev, before); err != nil {
		t.Fatal(err)
	}
	if now, err := h.Offloads(n.A.Dev); err != nil || !maps.Equal(now.Was, before.Was) {
		t.Errorf("before %v\nnow    %v, %v", before.Was, now.Was, err)
	}
}
