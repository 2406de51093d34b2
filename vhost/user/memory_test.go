package user

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost/virtio"
)

func TestMemoryChangesUnderRunningRings(t *testing.T) {
	p := newPeer(t)
	p.send(SetProtocolFeatures, 0, u64(uint64(DefaultProtocol)))
	p.send(SetFeatures, 0, u64(protocolF|1<<virtio.FVersion1))
	p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
	p.startRing(0, 5)
	p.settle()
	p.dev.take()
	extra := MemRegion{GPA: 1 << 30, Size: 1 << 20, UVA: testUVA + 1<<30, Offset: 1 << 20}
	const moved = "( stop0 start0:256@5 )"
	remove := func() uint64 { e := extra; e.Offset = 77; return p.ack(RemMemReg, AppendSingleRegion(nil, e), p.mem) }
	add := func() uint64 { return p.ack(AddMemReg, AppendSingleRegion(nil, extra), p.mem) }
	for _, step := range []struct {
		name    string
		do      func() uint64
		regions int
		moved   string
	}{
		{"the same table", func() uint64 { return p.ack(SetMemTable, AppendMemTable(nil, []MemRegion{region()}), p.mem) }, 1, moved},
		{"a larger table", func() uint64 {
			return p.ack(SetMemTable, AppendMemTable(nil, []MemRegion{extra, region()}), p.mem, p.mem)
		}, 2, moved},
		{"one removed", remove, 1, moved},
		{"removed by the second pair too", remove, 1, ""},
		{"one added", add, 2, moved},
		{"added by the second pair too", add, 2, ""},
		{"and removed once more", remove, 1, moved},
		{"and added", add, 2, moved},
	} {
		if r := step.do(); r != 0 {
			t.Fatalf("%s: %d", step.name, r)
		}
		p.want(step.name, step.moved)
		if i := p.s.Info(); i.Regions != step.regions {
			t.Errorf("%s: %d regions", step.name, i.Regions)
		}
	}
	if r := p.ack(RemMemReg, AppendSingleRegion(nil, MemRegion{GPA: 5, Size: 5, UVA: 5})); r == 0 {
		t.Error("removed what was not there")
	}
	if r := p.ack(RemMemReg, AppendSingleRegion(nil, region())); r == 0 {
		t.Error("ring's own memory removed")
	}
	if err := p.wait(); !errors.Is(err, ErrRingAddress) {
		t.Error(err)
	}
}
