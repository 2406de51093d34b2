//go:build !amd64

package datapath

func prefetchHead(*byte, uint64) {}
