package tapvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// Offload is a set of what the reader of a tap can take (TUN_F_ flags of include/uapi/linux/if_tun.h): for the host's end of a
// VM's tap, what the guest driver has acknowledged or switched by ctrl_guest_offloads.
type Offload uint

// The offloads. Without CSUM the kernel allows none of the others.
const (
	CSUM Offload = 1 << iota
	TSO4
	TSO6
	ECN // TCP superframes with CWR

	AllOffloads = CSUM | TSO4 | TSO6 | ECN

	USO Offload = 0x60 // UDP superframes: TUN_F_USO4 and TUN_F_USO6, of which the kernel takes no single one. Linux 6.2
)

// Features are the virtio features of a guest that has these offloads.
func (o Offload) Features() virtio.Features {
	f := virtio.Mask(virtio.FVersion1, virtio.FMrgRxbuf)
	for _, m := range []struct {
		o   Offload
		bit uint
	}{{CSUM, virtio.FGuestCsum}, {TSO4, virtio.FGuestTSO4}, {TSO6, virtio.FGuestTSO6}, {ECN, virtio.FGuestECN}, {USO, virtio.FGuestUSO4}, {USO, virtio.FGuestUSO6}} {
		if o&m.o != 0 {
			f |= virtio.Mask(m.bit)
		}
	}
	return f
}

// MaxRead is room for the longest frame of a tap with its header, in bytes.
const MaxRead = virtio.HdrSize + 65535 + 14 + 4

// Tap is an open tap device, not blocking. It lives as long as it is open, unless somebody made it persistent.
type Tap struct {
	Name   string
	FD     int
	HdrLen int // bytes of virtio_net_hdr in front of every frame, 0: none
}

// OpenTap creates the tap, or takes one that exists and nobody reads, in the calling thread's network namespace, as QEMU does. hdrLen is
// 12, 10, or 0 for a tap without vnet header. Its link is left as it is.
func OpenTap(name string, hdrLen int, o Offload) (*Tap, error) { return openTap(name, hdrLen, o, 0) }

// openTap is OpenTap with more flags of TUNSETIFF.
func openTap(name string, hdrLen int, o Offload, more uint16) (_ *Tap, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("tap %s: /dev/net/tun: %w", name, err)
	}
	t := &Tap{Name: name, FD: fd, HdrLen: hdrLen}
	defer func() {
		if err != nil {
			_ = t.Close()
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("tap %s: name: %w", name, err)
	}
	flags := unix.IFF_TAP | unix.IFF_NO_PI | more
	if hdrLen > 0 {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, fmt.Errorf("tap %s: create: %w", name, os.NewSyscallError("TUNSETIFF", err))
	}
	if hdrLen > 0 {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, hdrLen); err != nil {
			return nil, fmt.Errorf("tap %s: header size: %w", name, os.NewSyscallError("TUNSETVNETHDRSZ", err))
		}
		if err := t.SetOffload(o); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// SetOffload changes what the tap hands out from now on; what lies in its queue stays as it is.
func (t *Tap) SetOffload(o Offload) error {
	if err := unix.IoctlSetInt(t.FD, unix.TUNSETOFFLOAD, int(o)); err != nil {
		return fmt.Errorf("tap %s: offloads: %w", t.Name, os.NewSyscallError("TUNSETOFFLOAD", err))
	}
	return nil
}

// Read reads one frame with its header, or returns 0 when there is none.
func (t *Tap) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(t.FD, b)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("tap %s: read: %w", t.Name, err)
		}
	}
}

// Write writes one frame with its header: the tap's interface receives it.
func (t *Tap) Write(b []byte) error {
	for {
		_, err := unix.Write(t.FD, b)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// gone says that the device was deleted under the open file.
func (t *Tap) gone() bool {
	ifr, err := unix.NewIfreq(t.Name)
	return err == nil && unix.IoctlIfreq(t.FD, unix.TUNGETIFF, ifr) == unix.EBADFD
}

// Close closes the tap, and with it removes a device that is not persistent.
func (t *Tap) Close() error {
	if t.FD < 0 {
		return nil
	}
	err := unix.Close(t.FD)
	t.FD = -1
	return err
}
