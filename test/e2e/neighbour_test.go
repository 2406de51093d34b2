package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Two Linux stacks on one interface send to each other: TSO frames arrive whole, as superframes, byte by byte, in both families and
// directions; a guest that takes none gets packets; and what is isolated gets nothing. Every packet is explained.
func TestNeighboursHandTheirSuperframesOverWhole(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	vlan := []string{"--vlan", "7"}
	a := r.boot(stackguest.Config{Socket: r.attach("vm1", macA, vlan...), MAC: mac(t, macA)}, "10.78.0.10/24", "fd78::10/64")
	b := r.boot(stackguest.Config{Socket: r.attach("vm2", macB, vlan...), MAC: mac(t, macB)}, "10.78.0.11/24", "fd78::11/64")
	const macC = "52:54:00:00:00:0c"
	plain := stackguest.DefaultFeatures &^ virtio.Mask(virtio.FGuestTSO4, virtio.FGuestTSO6, virtio.FGuestECN)
	c := r.boot(stackguest.Config{Socket: r.attach("vm3", macC, vlan...), MAC: mac(t, macC), Features: plain}, "10.78.0.12/24", "fd78::12/64")
	stats := func() map[string]api.VMStats {
		var st api.Stats
		r.json(&st, "stats")
		all := map[string]api.VMStats{}
		for _, v := range st.VMs {
			all[v.VM] = v
		}
		return all
	}
	const bytes = 24 << 20
	for _, c := range []struct {
		from, to string
		a, b     *guest
		v6       bool
		whole    bool
	}{
		{"vm1", "vm2", a, b, false, true}, {"vm2", "vm1", b, a, true, true},
		{"vm1", "vm3", a, c, false, false}, {"vm3", "vm2", c, b, true, true},
	} {
		before := stats()
		netnstest.Bulk(t, c.a.side, c.b.side, bytes, c.v6, time.Minute)
		r.eventually(c.from+" to "+c.to, func() error {
			var st api.Stats
			r.json(&st, "stats")
			now, was := stats(), before
			whole := now[c.from].TxWhole - was[c.from].TxWhole
			merged := now[c.to].Sealed["gso_input"] - was[c.to].Sealed["gso_input"]
			packets := now[c.to].LocalFrames - was[c.to].LocalFrames
			switch {
			case st.Unexplained != 0:
				return fmt.Errorf("unexplained %d", st.Unexplained)
			case packets < bytes/1500:
				return fmt.Errorf("%d packets of %d bytes", packets, int(bytes))
			case c.whole && (merged < bytes/65536/2 || whole < merged || now[c.to].Superframes-was[c.to].Superframes > packets/4):
				return fmt.Errorf("%d frames left whole, %d arrived so, %d packets", whole, merged, packets)
			case !c.whole && whole+merged > 0:
				return fmt.Errorf("%d frames whole for a guest that takes none", whole)
			}
			return nil
		})
	}
	for _, g := range []*guest{a, b, c} {
		if err := g.Err(); err != nil {
			t.Error(err)
		}
	}
	r.must("policy", "set", "vm2", "--isolate")
	before := stats()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := a.side.Send(ctx, netip.AddrPortFrom(b.side.IPv4.Addr(), 9), 1); err == nil {
		t.Error("an isolated VM answers")
	}
	if now := stats(); now["vm2"].LocalFrames != before["vm2"].LocalFrames || now["vm1"].TxDropped["isolated"] == 0 {
		t.Errorf("%d packets crossed, dropped %v", now["vm2"].LocalFrames-before["vm2"].LocalFrames, now["vm1"].TxDropped)
	}
}
