package tap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// devicePath is the kernel's vhost-net.
const devicePath = "/dev/vhost-net"

// device is an open /dev/vhost-net that we own: its worker copies in our address space and dies with us. The worker is a thread
// of the kernel, from Linux 6.4 on one of our own process.
type device struct {
	fd int
}

// Available says whether /dev/vhost-net can be used: nil, or an error that wraps ErrNoVhostNet or ErrPermission and tells the
// operator what to do.
func Available() error {
	d, err := openDevice(devicePath)
	if err != nil {
		return err
	}
	return d.close()
}

// openDevice opens and owns the device, and with that creates its worker.
func openDevice(path string) (*device, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT, err == unix.ENODEV, err == unix.ENXIO:
		return nil, fmt.Errorf("%w (%w)", ErrNoVhostNet, err)
	case err == unix.EACCES, err == unix.EPERM:
		return nil, fmt.Errorf("%w (%w)", ErrPermission, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, os.NewSyscallError("open", err))
	}
	d := &device{fd: fd}
	if err := ioctl(fd, vhostSetOwner, nil); err != nil {
		_ = d.close()
		if err == unix.ENOTTY { // some other file of that name
			return nil, fmt.Errorf("%w (%w)", ErrNoVhostNet, err)
		}
		return nil, fmt.Errorf("%s: own: %w", path, err)
	}
	return d, nil
}

func (d *device) close() error { return unix.Close(d.fd) }

// negotiate sets the features, all of which the kernel must offer.
func (d *device) negotiate(f virtio.Features) error {
	var offered uint64
	if err := ioctlU64(d.fd, vhostGetFeatures, &offered); err != nil {
		return fmt.Errorf("%s: features: %w", devicePath, err)
	}
	if missing := f &^ virtio.Features(offered); missing != 0 {
		return fmt.Errorf("%w: %v", ErrFeatures, missing.Names())
	}
	want := uint64(f)
	if err := ioctlU64(d.fd, vhostSetFeatures, &want); err != nil {
		return fmt.Errorf("%s: features: %w", devicePath, err)
	}
	return nil
}

// share gives the kernel the memory that descriptors may name, each region at its own address. At most two.
func (d *device) share(regions ...[]byte) error {
	var t memTable
	for _, r := range regions {
		if len(r) == 0 {
			continue
		}
		a := address(r)
		t.regions[t.count] = memRegion{gpa: a, uva: a, size: uint64(len(r))}
		t.count++
	}
	if err := ioctlMem(d.fd, &t); err != nil {
		return fmt.Errorf("%s: memory table: %w", devicePath, err)
	}
	return nil
}

// ring is one virtqueue of the device with its eventfds, which exist before the device hears of them.
type ring struct {
	dev             *device
	index           uint32
	kick, call, err int
}

// newRing makes the eventfds and shows the device the ring, which starts at index 0. It runs once setBackend has given it a
// backend.
func (d *device) newRing(index int, l vring.Layout) (_ *ring, err error) {
	r := &ring{dev: d, index: uint32(index), kick: -1, call: -1, err: -1}
	defer func() {
		if err != nil {
			r.closeEvents()
		}
	}()
	for _, fd := range []*int{&r.kick, &r.call, &r.err} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			*fd = -1
			return nil, fmt.Errorf("ring %d: eventfd: %w", index, err)
		}
	}
	for _, x := range []struct {
		request uintptr
		fd      int
	}{{vhostSetVringCall, r.call}, {vhostSetVringErr, r.err}, {vhostSetVringKick, r.kick}} {
		if err := ioctlFile(d.fd, x.request, &vringFile{r.index, int32(x.fd)}); err != nil {
			return nil, fmt.Errorf("ring %d: eventfd: %w", index, err)
		}
	}
	err = errors.Join(
		ioctlState(d.fd, vhostSetVringNum, &vringState{r.index, uint32(l.Num)}),
		ioctlState(d.fd, vhostSetVringBase, &vringState{r.index, 0}),
		ioctlAddr(d.fd, &vringAddr{index: r.index, desc: address(l.Desc), used: address(l.Used), avail: address(l.Avail)}),
	)
	if err != nil {
		return nil, fmt.Errorf("ring %d: %w", index, err)
	}
	return r, nil
}

// setBackend starts the ring on a socket or tap.
func (r *ring) setBackend(fd int) error {
	if err := ioctlFile(r.dev.fd, vhostSetBackend, &vringFile{r.index, int32(fd)}); err != nil {
		return fmt.Errorf("ring %d: backend: %w", r.index, err)
	}
	return nil
}

// stop takes the backend away, which waits for what the worker has in hand, and returns the index of the next chain that the
// worker would have taken.
func (r *ring) stop() (base uint16, err error) {
	if err := r.setBackend(-1); err != nil {
		return 0, err
	}
	s := vringState{index: r.index}
	if err := ioctlState(r.dev.fd, vhostGetVringBase, &s); err != nil {
		return 0, fmt.Errorf("ring %d: base: %w", r.index, err)
	}
	return uint16(s.num), nil
}

func (r *ring) closeEvents() {
	for _, fd := range []int{r.kick, r.call, r.err} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
