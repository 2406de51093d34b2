//go:build race

package vring_test

const raceEnabled = true // allocation counts mean nothing under the race detector
