package flowtable

import (
	"reflect"
	"runtime"
	"testing"
)

func TestMemoryIsWhatTheConstantsSay(t *testing.T) {
	if n := reflect.TypeFor[slot]().Size(); n != 128 {
		t.Errorf("a slot has %d bytes, not two cache lines", n)
	}
	if n := reflect.TypeFor[origin]().Size(); n != 64 {
		t.Errorf("an origin has %d bytes, not one cache line", n)
	}
	if n := reflect.TypeFor[Fragment]().Size(); n != fragmentBytes {
		t.Errorf("a fragment has %d bytes, not %d", n, fragmentBytes)
	}
	for _, slots := range []int{1, 64, 1000, DefaultSlots, MaxSlots} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		table, err := New(Config{Slots: slots, Ports: 1}, discard{})
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(table)
		// The allocator rounds up; beside the slots there are the table itself and one port.
		limit := uint64(slots*BytesPerSlot+4*slots*BytesPerChunk)*110/100 + 16<<10
		if got := after.TotalAlloc - before.TotalAlloc; got > limit {
			t.Errorf("%d slots, %d chunks: %d bytes, more than %d", slots, 4*slots, got, limit)
		}
	}
	t.Logf("%d bytes per slot, %d per chunk held", BytesPerSlot, BytesPerChunk)
}

type discard struct{}

func (discard) Deliver(*Superframe) {}
