package vduse

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl gives a request its argument, and returns the number that it answers with.
func ioctl[T any](fd int, request uint, what string, arg *T) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return 0, os.NewSyscallError(what, errno)
	}
	return int(n), nil
}

// address is where memory that is mapped, and so does not move, lies in this process.
func address(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }
