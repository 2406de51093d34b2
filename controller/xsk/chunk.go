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

// ChunkFor is the smallest chunk for an MTU, 0 when none holds its frames.
func ChunkFor(mtu, grain int) int {
	for _, chunk := range []int{SmallChunk, LargeChunk} {
		if mtu <= MaxMTU(chunk, grain) {
			return chunk
		}
	}
	return 0
}
