//go:build race

package guestmem

const raceEnabled = true // allocation counts mean nothing under the race detector
