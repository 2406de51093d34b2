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

// MaxMTU is the largest MTU, in bytes of an IP packet, whose frames with one tag a chunk holds.
func MaxMTU(chunk int) int { return chunk - Headroom - ethHeader - vlanTag }

// ChunkFor is the smallest chunk for an MTU, 0 when none holds its frames.
func ChunkFor(mtu int) int {
	for _, chunk := range []int{SmallChunk, LargeChunk} {
		if mtu <= MaxMTU(chunk) {
			return chunk
		}
	}
	return 0
}
