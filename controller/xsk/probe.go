package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// CheckMultiBuffer tells whether the kernel's sockets take frames that no chunk holds (Linux 6.6). It asks for the flag alone, at no
// interface: a kernel that knows it finds that there is no such one, another one the flag. Error: ErrUnsupported.
func CheckMultiBuffer() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil // who opens one in earnest learns why
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_USE_SG}); errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("xsk: frames in several chunks (XDP_USE_SG, Linux 6.6): %w", ErrUnsupported)
	}
	return nil
}
