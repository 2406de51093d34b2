//go:build !amd64

package datapath

func prefetchPayload(*byte) {}

func prefetchHead(*byte) {}
