package controller

import (
	"errors"
	"testing"
)

// A queue has room for 22 segments of each of 512 flows where the machine's memory allows, and otherwise for what it always had.
func TestSizesFollowTheMachine(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		queues, chunk int
		memory        uint64
		want          int
	}{
		{1, 2048, 16 * gib, 32768}, {4, 2048, 16 * gib, 8192}, {8, 2048, 16 * gib, 8192}, {64, 2048, 16 * gib, 8192}, {1, 4096, 16 * gib, 16384},
		{1, 2048, gib, 8192}, {16, 2048, 64 * gib, 8192}, {1, 2048, 0, 8192}, {0, 2048, 64 * gib, 32768},
	} {
		if got := (Sizes{}).rings(c.queues, frameRoom{chunk: c.chunk}, c.memory).Chunks; got != c.want {
			t.Errorf("%d queues, chunks of %d, %d MiB: %d chunks, want %d", c.queues, c.chunk, c.memory>>20, got, c.want)
		}
	}
	for chunks, want := range map[int]int{8192: 2048, 10_000: 2048, 16_383: 2048, 16_384: 4096, 32_767: 4096, 32_768: 8192, MostChunks: 8192} {
		if r := (Sizes{Chunks: chunks}).rings(1, frameRoom{chunk: 2048}, 0); r.Rx != want || r.Fill != want {
			t.Errorf("%d chunks: rings of %d and %d, want %d", chunks, r.Rx, r.Fill, want)
		}
	}
	s := Sizes{Chunks: 10_000, Slots: 100}
	if r := (Sizes{}).rings(1, frameRoom{4096, 9216}, 16*gib); r.Chunks != 8192 || r.Frames != 4096 || r.FrameSize != 9216 || r.Rx != 4096 || r.Fill != 4096 {
		t.Errorf("for an MTU of 9000: %+v", r)
	}
	if got := s.rings(64, frameRoom{chunk: 4096}, gib).Chunks; got != 10_000 || s.slots() != 100 || (Sizes{}).slots() != 4096 {
		t.Errorf("what the operator says: %d chunks, %d slots", got, s.slots())
	}
}

func TestSizesHaveBounds(t *testing.T) {
	for s, ok := range map[Sizes]bool{
		{}: true, {LeastChunks, LeastSlots}: true, {MostChunks, MostSlots}: true, {1, 0}: false, {-1, 0}: false, {0, -1}: false, {0, 63}: false,
		{MostChunks + 1, 0}: false, {0, MostSlots + 1}: false,
	} {
		if err := s.Check(); ok != (err == nil) || !ok && !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}
