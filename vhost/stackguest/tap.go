package stackguest

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// ErrNoTun is returned when the kernel's tun driver cannot be reached.
var ErrNoTun = errors.New("/dev/net/tun cannot be opened; load the module (modprobe tun) or create the node (mknod /dev/net/tun c 10 200)")

// Flags of TUNSETOFFLOAD: what the reader of the tap can take (include/uapi/linux/if_tun.h).
const (
	tunFCsum   = 0x01
	tunFTSO4   = 0x02
	tunFTSO6   = 0x04
	tunFTSOECN = 0x08
	tunFUSO4   = 0x20 // Linux 6.2
	tunFUSO6   = 0x40
)

// tapConfig describes the tap device of a Guest.
type tapConfig struct {
	Name   string
	MAC    net.HardwareAddr
	Queues int  // file descriptors; more than one makes the device multi-queue
	NAPI   bool // IFF_NAPI: written frames go through NAPI and so through GRO
}

// tapOffers translates what the back-end lets a guest leave to it into the tap's transmit features.
func tapOffers(f virtio.Features) uint {
	var o uint
	if !f.Has(virtio.FCsum) {
		return 0
	}
	o = tunFCsum
	if f.Has(virtio.FHostTSO4) {
		o |= tunFTSO4
	}
	if f.Has(virtio.FHostTSO6) {
		o |= tunFTSO6
	}
	if f.Has(virtio.FHostECN) && o&(tunFTSO4|tunFTSO6) != 0 {
		o |= tunFTSOECN
	}
	if f.Has(virtio.FHostUSO) {
		o |= tunFUSO4 | tunFUSO6 // only as the pair
	}
	return o
}

// openTap creates the tap device in the calling thread's network namespace and returns one descriptor per queue. The
// device lives as long as its descriptors. Its link is left down: the caller of the package gives it addresses first.
func openTap(c tapConfig) (fds []int, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if c.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	if c.NAPI {
		flags |= unix.IFF_NAPI
	}
	for range c.Queues {
		// Non-blocking writes also let the kernel build small frames in one page instead of allocating and gathering.
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fds, fmt.Errorf("tap %s: %w: %w", c.Name, ErrNoTun, err)
		}
		fds = append(fds, fd)
		ifr, err := unix.NewIfreq(c.Name)
		if err != nil {
			return fds, fmt.Errorf("tap %s: name: %w", c.Name, err)
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return fds, fmt.Errorf("tap %s: create: %w", c.Name, os.NewSyscallError("TUNSETIFF", err))
		}
	}
	if len(c.MAC) > 0 {
		if err := setMAC(c.Name, c.MAC); err != nil {
			return fds, fmt.Errorf("tap %s: address: %w", c.Name, err)
		}
	}
	return fds, nil
}

// takesDatagrams tells whether the kernel takes UDP superframes that are written to the tap: one that does not refuses each of them. It is asked
// by offering to take such frames from it.
func takesDatagrams(fds []int) bool {
	return unix.IoctlSetInt(fds[0], unix.TUNSETOFFLOAD, tunFCsum|tunFUSO4|tunFUSO6) == nil
}

// agree tells the tap what was negotiated: the bytes of virtio_net_hdr in front of every frame, and TUN_F_ flags.
func agree(fds []int, hdrLen int, offers uint) error {
	for _, fd := range fds {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, hdrLen); err != nil {
			return fmt.Errorf("header size: %w", os.NewSyscallError("TUNSETVNETHDRSZ", err))
		}
	}
	if err := unix.IoctlSetInt(fds[0], unix.TUNSETOFFLOAD, int(offers)); err != nil {
		return fmt.Errorf("offloads: %w", os.NewSyscallError("TUNSETOFFLOAD", err))
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
