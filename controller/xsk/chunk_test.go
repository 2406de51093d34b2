package xsk

import "testing"

// A chunk is chosen that the driver fills with a whole frame of the MTU, a tag included.
func TestAChunkHoldsWhatTheDriverReceivesWhole(t *testing.T) {
	for _, c := range []struct {
		driver     string
		mtu, chunk int
	}{
		{"veth", 1774, SmallChunk}, {"veth", 1775, LargeChunk}, {"ice", 3822, LargeChunk}, {"ice", 3823, 0},
		{"igb", 1006, SmallChunk}, {"igb", 1007, LargeChunk}, {"igc", 1500, LargeChunk}, {"ixgbe", 3054, LargeChunk}, {"igb", 3055, 0},
	} {
		if got := ChunkFor(c.mtu, Grain(c.driver)); got != c.chunk {
			t.Errorf("%s, MTU %d: a chunk of %d bytes, want %d", c.driver, c.mtu, got, c.chunk)
		}
	}
}

// A buffer holds a whole frame of the MTU, a tag included, and is larger than a chunk; the largest MTU of a buffer is one that has that buffer.
func TestABufferHoldsTheFramesOfItsMTU(t *testing.T) {
	for mtu := MaxMTU(SmallChunk, 1); mtu < 20000; mtu++ {
		switch size := FrameFor(mtu); {
		case mtu > FrameMTU(MostFrame):
			if size != 0 {
				t.Fatalf("MTU %d: a buffer of %d bytes", mtu, size)
			}
		case size <= LargeChunk || size > MostFrame || FrameMTU(size) < mtu || FrameFor(FrameMTU(size)) != size:
			t.Fatalf("MTU %d: a buffer of %d bytes, which holds %d", mtu, size, FrameMTU(size))
		}
	}
}
