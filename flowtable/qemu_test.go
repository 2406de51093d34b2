package flowtable_test

import (
	"slices"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// forget is an Output for tests that look at counters only.
type forget struct{}

func (forget) Deliver(*flowtable.Superframe) {}

func TestCountersUnderNamesOfOthers(t *testing.T) {
	table, err := flowtable.New(flowtable.Config{Ports: 1}, forget{})
	if err != nil {
		t.Fatal(err)
	}
	c := flowtable.DefaultPortConfig()
	c.GuestCsum, c.TSO4, c.TSO6, c.RSCExt, c.Profile = true, true, true, true, flowtable.RSC
	if err := table.SetPort(0, c, 0); err != nil {
		t.Fatal(err)
	}
	data := pt.TCP{Seq: 100, Len: 100}.Train(3)
	update := pt.TCP{Seq: 400, Win: 1000}
	for _, f := range append(pt.Frames(append(data, update, pt.TCP{Seq: 400, Flags: pt.SYN})...), pt.ARP()) {
		p := flowtable.Packet{Data: f}
		packet.Parse(f, &p.Info)
		table.Add(&p, 0)
	}
	st := table.Ledger(0)
	qemu := st.QEMU()
	want := map[string]uint64{"received": 5, "coalesced": 2, "win_update": 1, "tcp_syn": 2, "cache": 1, "no_match_cache": 1}
	var names []string
	for _, n := range qemu {
		names = append(names, n.Name)
		if n.Value != want[n.Name] {
			t.Errorf("%s = %d, want %d", n.Name, n.Value, want[n.Name])
		}
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != 29 {
		t.Errorf("QEMU's 29 names are %d", len(slices.Compact(names)))
	}
	for _, n := range st.Virtio() {
		want := map[string]uint64{"rx_gso_packets": 1, "rx_gso_packets_coalesced": 4, "rx_gso_bytes_coalesced": 3*154 + 54}[n.Name]
		if n.Value != want {
			t.Errorf("%s = %d, want %d", n.Name, n.Value, want)
		}
	}
}
