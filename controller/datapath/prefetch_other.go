//go:build !amd64

package datapath

func prefetch([]byte) {}

func prefetchHead(*byte) {}
