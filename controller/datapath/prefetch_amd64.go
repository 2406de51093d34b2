package datapath

// prefetchHead asks for the line before a frame, which has metadata, and the two lines of its headers, and waits for none.
//
//go:noescape
func prefetchHead(frame *byte)
