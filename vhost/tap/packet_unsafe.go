package tap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr (include/linux/socket.h).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32 // bytes sent
}

// sendmmsg sends messages until one fails and returns how many it sent, or, when it was none, why. msgs is not empty.
func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
		uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// ifreq is struct ifreq (include/uapi/linux/if.h): a name, and a union of which we use an int and a short.
type ifreq struct {
	name  [unix.IFNAMSIZ]byte
	value int32
	_     [20]byte
}

// interfaceState asks in the socket's own network namespace, wherever the calling thread is. ENODEV: there is no such interface.
func interfaceState(fd, ifindex int) (mtu int, up bool, err error) {
	r := ifreq{value: int32(ifindex)}
	if err := ioctl(fd, unix.SIOCGIFNAME, unsafe.Pointer(&r)); err != nil {
		return 0, false, err
	}
	if err := ioctl(fd, unix.SIOCGIFMTU, unsafe.Pointer(&r)); err != nil {
		return 0, false, err
	}
	mtu = int(r.value)
	if err := ioctl(fd, unix.SIOCGIFFLAGS, unsafe.Pointer(&r)); err != nil { // a short
		return 0, false, err
	}
	return mtu, r.value&unix.IFF_UP != 0, nil
}

// ioctl returns a bare errno, so that callers can compare it.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
