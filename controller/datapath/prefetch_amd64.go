package datapath

// prefetch asks for the cache lines of b, and waits for none.
//
//go:noescape
func prefetch(b []byte)

// prefetchHead asks for the line before a frame, which has metadata, and the two lines of its headers, and waits for none.
//
//go:noescape
func prefetchHead(frame *byte)
