package vhost_test

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapBook maps a ferryBook that outlives a process.
func mapBook(fd int) (*ferryBook, error) {
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*ferryBook)(unsafe.Pointer(&b[0])), nil
}
