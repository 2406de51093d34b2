package netdev

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreq is struct ifreq as SIOCETHTOOL reads it: the name and a pointer (linux/if.h). The union behind the name has 24
// bytes on 64-bit machines and 16 on 32-bit ones; the pointer is its first member.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// ioctl sends one request. The kernel reads and writes b, whose size the request itself implies: callers make b with
// the size of its structure. b is on the heap (a slice), so it does not move under the kernel.
func (e *ethtool) ioctl(name string, b []byte) error {
	if !validName(name) {
		return unix.ENODEV
	}
	r := ifreq{data: unsafe.Pointer(unsafe.SliceData(b))}
	copy(r.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(b)
	if errno != 0 {
		return errno
	}
	return nil
}
