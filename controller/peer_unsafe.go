package controller

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups returns the supplementary groups that the peer of a Unix socket had when it connected (SO_PEERGROUPS, Linux 4.13). The
// kernel answers ERANGE and the length that it needs when there is no room for all; there are at most 65,536 (NGROUPS_MAX).
func peerGroups(fd int) ([]uint32, error) {
	const width = uint32(unsafe.Sizeof(uint32(0)))
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups)) * width
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:min(int(size/width), len(groups))], nil
		case errno == unix.ERANGE && int(size/width) > len(groups):
			groups = make([]uint32, size/width)
		default:
			return nil, errno
		}
	}
}
