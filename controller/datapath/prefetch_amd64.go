package datapath

// prefetchPayload asks for the first payloadAhead bytes of a payload, and waits for none.
//
//go:noescape
func prefetchPayload(b *byte)

// prefetchHead asks for the line before a frame, which has metadata, and the two lines of its headers, and waits for none.
//
//go:noescape
func prefetchHead(frame *byte)
