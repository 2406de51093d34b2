package netdev

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoTun: the device between the host and the controller cannot be made.
var ErrNoTun = errors.New("/dev/net/tun cannot be used")

const (
	wayPrefix   = "rsc-"
	wayMTU      = 65521 // the largest of a tap: frames of any MTU cross it
	tunDevice   = "/dev/net/tun"
	genModeNone = 1      // IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h): no link-local address, so nothing to say
	wayQueue    = 1      // frames that nobody will read: what goes out by the device is seen by packet sockets on its way
	tunExcl     = 0x8000 // IFF_TUN_EXCL (include/uapi/linux/if_tun.h): not one that is there already
)

// Way is the device between an interface's host and the controller: a tap by which nothing goes but what programs of ours turn to it. It
// is there as long as some process has its descriptor, so a process that dies takes it along.
type Way struct {
	Name  string
	Index int
	// TakesUSO: the kernel's virtio_net_hdr has a word for a train of UDP datagrams, which taps and packet sockets learnt together (Linux 6.2).
	TakesUSO bool

	fd int
}

// WayName is what the way of an interface is called, if nobody else has that name.
func WayName(uplink string, ifindex int) string {
	if name := wayPrefix + uplink; len(name) < unix.IFNAMSIZ {
		return name
	}
	return wayPrefix + strconv.Itoa(ifindex)
}

// OpenWay makes the way of an interface in the calling thread's network namespace, and switches it on. It speaks no protocol of its own. It
// needs CAP_NET_ADMIN, and /dev/net/tun. Error: ErrNoTun.
func OpenWay(uplink string, ifindex int) (_ *Way, err error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: load the module (modprobe tun), and allow the device in the service's or container's device rules (DeviceAllow=/dev/net/tun rw)", ErrNoTun, err)
	}
	w := &Way{Name: WayName(uplink, ifindex), fd: fd}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tap %s: %w", w.Name, err), w.Close())
		}
	}()
	err = w.make()
	if errors.Is(err, unix.EBUSY) { // somebody's, or one of ours whose last descriptor is just being closed
		w.Name = wayPrefix + strconv.Itoa(ifindex)
		err = w.make()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTun, err)
	}
	return w, w.configure()
}

// make makes the device, which must not be there.
func (w *Way) make() error {
	ifr, err := unix.NewIfreq(w.Name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | tunExcl)
	if err := unix.IoctlIfreq(w.fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	return w.setOffloads()
}

// setOffloads finds out what the kernel has words for, and leaves the device without any offload: a frame that goes out by it is cut, and its
// checksum made.
func (w *Way) setOffloads() error {
	w.TakesUSO = unix.IoctlSetInt(w.fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil
	if err := unix.IoctlSetInt(w.fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return fmt.Errorf("offloads: %w", err)
	}
	return nil
}

// configure makes the device silent, and switches it on.
func (w *Way) configure() error {
	l, err := netlink.LinkByName(w.Name)
	if err != nil {
		return err
	}
	w.Index = l.Attrs().Index
	// Without IPv6 in the kernel there is nothing to switch off.
	if err := netlink.LinkSetIP6AddrGenMode(l, genModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("IPv6: %w", err)
	}
	if err := netlink.LinkSetARPOff(l); err != nil {
		return fmt.Errorf("ARP: %w", err)
	}
	if err := netlink.LinkSetMTU(l, wayMTU); err != nil {
		return fmt.Errorf("mtu: %w", err)
	}
	if err := w.noQueue(l); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	return netlink.LinkSetUp(l)
}

// noQueue sees to it that nothing waits for a reader that there is not, or is dropped in front of it. A kernel without queueing disciplines to choose
// (CONFIG_NET_SCHED) keeps its own, whose queue must not be short.
func (w *Way) noQueue(l netlink.Link) error {
	switch err := setQdisc(w.Index, "noqueue"); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		return err
	}
	return netlink.LinkSetTxQLen(l, wayQueue)
}

// AdoptWay goes on with the device of another process, which must be of the calling thread's network namespace. The descriptor is taken over,
// also with an error.
func AdoptWay(fd, index int) (*Way, error) {
	w := &Way{fd: fd, Index: index}
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
	}
	if err == nil {
		w.Name = ifr.Name()
		var l netlink.Link
		if l, err = netlink.LinkByName(w.Name); err == nil && l.Attrs().Index != index {
			err = ErrNoDevice
		}
	}
	if err == nil {
		err = w.setOffloads()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap of ours: %w", err), w.Close())
	}
	return w, nil
}

// Check looks whether the device still is in h's network namespace, and switches it on if somebody has switched it off. ErrNoDevice: it
// is not.
func (w *Way) Check(h *Handle) error {
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(w.fd, unix.TUNGETIFF, ifr)
	}
	l, bad := h.nl.LinkByIndex(w.Index)
	if err != nil || bad != nil {
		return fmt.Errorf("tap %s: %w", w.Name, ErrNoDevice)
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return h.nl.LinkSetUp(l)
}

// FD is what keeps the device. It stays w's.
func (w *Way) FD() int { return w.fd }

// Close gives the device up, which is gone when no other process has it. nil is no error.
func (w *Way) Close() error {
	if w == nil {
		return nil
	}
	return unix.Close(w.fd)
}
