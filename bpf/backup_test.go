package bpf

import (
	"testing"

	"github.com/rscctl/rscctl/bpf/meta"
)

// Two members of a bond know the same VMs and count in the same maps; what comes in by the backup is left to the bond and is in no flow.
func TestTheBackupOfABondLeavesFramesToTheBond(t *testing.T) {
	first := loadForTest(t)
	second, err := Load(LoadOptions{Ifindex: first.ifindex, Queues: 1, Beside: first})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Close() })
	id := meta.PortID(3, 0)
	first.mustSetPort(t, 0, PortValue{Port: id, Flags: FlagSteer})
	socketFor(t, first)
	socketFor(t, second)
	frame := ip4(6, 0x4000, nil, tcp(8, 0x18, 100))
	for _, backup := range []bool{false, true, false} {
		if err := second.SetBackup(backup); err != nil {
			t.Fatal(err)
		}
		want, counted := "redirect", uint64(1)
		if backup {
			want, counted = "pass_backup", 0
		}
		before := flowPackets(t, first, id)
		if got := moved(t, first, func() { second.run(t, frame) }); len(got) != 1 || got[want] != 1 {
			t.Errorf("backup %t: %v, want one %s", backup, got, want)
		}
		if n := flowPackets(t, first, id) - before; n != counted {
			t.Errorf("backup %t: %d packets counted, want %d", backup, n, counted)
		}
		if got := moved(t, first, func() { first.run(t, frame) }); len(got) != 1 || got["redirect"] != 1 {
			t.Errorf("the other member, backup %t: %v", backup, got)
		}
	}
	// Whichever goes, the other one's maps stay, and it knows which TCP ports are left alone.
	if err := first.SetExcluded(id, []uint16{443}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.TakeLead(); err != nil || len(second.excludes[id]) != 1 {
		t.Errorf("excluded ports %v, %v", second.excludes, err)
	}
	if got := moved(t, second, func() { second.run(t, frame) }); got["redirect"] != 1 {
		t.Errorf("after the first has gone: %v", got)
	}
}

// flowPackets is how many packets have been counted in a VM's flows.
func flowPackets(t *testing.T, p *Program, id uint32) (n uint64) {
	t.Helper()
	rows, err := p.Slots().Flows(id, p.flowsOf(t, id))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		n += r.Stats.Packets()
	}
	return n
}
