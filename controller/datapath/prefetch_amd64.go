package datapath

// prefetchHead asks for the line before a frame, which has metadata, and the two lines of its headers, and waits for none. The frame is at a place
// in memory; asking for what is nowhere does nothing.
//
//go:noescape
func prefetchHead(memory *byte, at uint64)
