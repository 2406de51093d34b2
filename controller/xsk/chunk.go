package xsk

// Sizes of a UMEM chunk that the kernel takes where a page has 4096 bytes (net/xdp/xdp_umem.c).
const (
	SmallChunk = 2048
	LargeChunk = 4096
)

// QueueChunks is how many chunks the UMEM of each queue of an uplink has.
const QueueChunks = 8192

// What a chunk holds beside the MTU and Headroom.
const (
	ethHeader = 14
	vlanTag   = 4
)

// Grain is the unit in bytes in which a driver tells its NIC, in zero-copy, how much fits behind the Headroom of a chunk. A frame that
// is longer than whole units is cut into pieces, each of which comes as a frame (igb, igc), or dropped (ixgbe): their hardware counts
// in KiB (the field BSIZEPKT of the register SRRCTL).
func Grain(driver string) int {
	switch driver {
	case "igb", "igc", "ixgbe":
		return 1024
	}
	return 1
}

// MaxMTU is the largest MTU, in bytes of an IP packet, whose frames with one tag a chunk holds, with a driver of that Grain.
func MaxMTU(chunk, grain int) int { return (chunk-Headroom)/grain*grain - ethHeader - vlanTag }

// Frames that no chunk holds come in several (AF_XDP multi-buffer), and are put together in a buffer of their own.
const (
	frameHead  = 64   // bytes in front of the frame: its metadata, in a cache line of its own
	frameGrain = 1024 // sizes of buffers are multiples of it, so that an MTU may grow a little
	MostFrame  = 16384
)

// FrameFor is the smallest buffer for the frames of an MTU with one tag, larger than any chunk, and 0 when that is more than MostFrame.
func FrameFor(mtu int) int {
	size := (mtu + ethHeader + vlanTag + frameHead + frameGrain - 1) / frameGrain * frameGrain
	if size > MostFrame {
		return 0
	}
	return max(size, LargeChunk+frameGrain)
}

// FrameMTU is the largest MTU whose frames with one tag a buffer of that size holds.
func FrameMTU(size int) int { return size - frameHead - ethHeader - vlanTag }

// Pieces is in how many chunks the longest frame of a buffer comes.
func Pieces(size, chunk int) int {
	one := chunk - Headroom
	return (size - frameHead + one - 1) / one
}

// ChunkFor is the smallest chunk for an MTU, 0 when none holds its frames.
func ChunkFor(mtu, grain int) int {
	for _, chunk := range []int{SmallChunk, LargeChunk} {
		if mtu <= MaxMTU(chunk, grain) {
			return chunk
		}
	}
	return 0
}
