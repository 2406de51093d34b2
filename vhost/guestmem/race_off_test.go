//go:build !race

package guestmem

const raceEnabled = false
