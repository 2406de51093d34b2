package datapath

// prefetch asks for the cache lines of b, and waits for none.
//
//go:noescape
func prefetch(b []byte)
