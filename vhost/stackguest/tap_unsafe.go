package stackguest

import (
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreqHwaddr is struct ifreq with its hardware address (include/uapi/linux/if.h): a name, a sockaddr, padding to 40 bytes.
type ifreqHwaddr struct {
	name   [unix.IFNAMSIZ]byte
	family uint16
	data   [14]byte
	_      [8]byte
}

// setMAC gives an interface that is down its hardware address.
func setMAC(name string, mac net.HardwareAddr) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	r := ifreqHwaddr{family: unix.ARPHRD_ETHER}
	copy(r.name[:unix.IFNAMSIZ-1], name)
	copy(r.data[:], mac)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(&r)
	if errno != 0 {
		return os.NewSyscallError("SIOCSIFHWADDR", errno)
	}
	return nil
}

// writev writes the pieces as one frame. The unix package's Writev takes [][]byte and allocates for more than eight.
func writev(fd int, iov []unix.Iovec) (int, syscall.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return int(n), errno
}

// read reads one frame. The unix package's Read returns an error interface and is instrumented; this is the loop's own.
func read(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}
