package vduse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Control is the device that makes devices; a kernel without it has no VDUSE.
const Control = "/dev/vduse/control"

// Descriptors of the driver's rings: RX, TX. A transmit ring of 256 frames of 64 KiB fills a quarter of the bounce pages.
var ringSizes = [...]uint16{1024, 256}

// longestChain are the buffers of the longest frame that Linux sends: MAX_SKB_FRAGS, its head, and the header, with room to spare.
const longestChain = 64

// needControlQueue are features that the driver takes from no device without a control queue.
var needControlQueue = virtio.Mask(virtio.FCtrlVQ, virtio.FCtrlGuestOffloads, virtio.FCtrlRx, virtio.FCtrlVLAN, virtio.FCtrlRxExtra,
	virtio.FGuestAnnounce, virtio.FMQ, virtio.FCtrlMACAddr, virtio.FNotfCoal, virtio.FRSS)

// deviceFeatures are those of the device that the back-end hears nothing of.
var deviceFeatures = virtio.Mask(virtio.FMAC, virtio.FAccessPlatform)

// ErrNoInterface is returned when no driver has taken the device.
var ErrNoInterface = errors.New("no driver made a network interface of the device (is the module virtio_vdpa loaded?)")

// Config describes a Device.
type Config struct {
	Name   string // of the VDUSE device and of the vDPA device
	Socket string // of the back-end
	MAC    net.HardwareAddr
	MTU    int // 0: 1500
}

// Device is a network interface of this kernel with a vhost-user back-end behind it.
type Device struct {
	cfg     Config
	fe      *user.Frontend
	gpa     uint64 // of the bounce pages
	bounce  []byte
	control int      // -1 before it is open
	made    bool     // there is a VDUSE device
	added   bool     // there is a vDPA device
	fd      int      // of file
	file    *os.File // the VDUSE device
	wg      sync.WaitGroup

	session *session // only the goroutine that answers the kernel
	uses    bool     // the bounce pages are registered; only a session, one behind the other

	mu     sync.Mutex
	driver virtio.Features // what the driver accepted
	err    error           // the first
}

// Open connects to the back-end, trying until ctx ends, and makes the device. When it returns the driver has its interface, which is
// down; frames move once that is up.
func Open(ctx context.Context, cfg Config) (_ *Device, err error) {
	d := &Device{cfg: cfg, control: -1, fd: -1}
	defer func() {
		if err != nil {
			_ = d.Close()
		}
	}()
	rings := 1 << 20 // two of 1024 descriptors, with room to spare
	rings += 2 * int(ringSizes[0]) * longestChain * 16
	d.fe, err = user.OpenFrontend(ctx, user.FrontendConfig{
		Socket: cfg.Socket, Features: ^needControlQueue, RingSize: int(ringSizes[0]), Indirect: longestChain, Memory: rings + bounceSize,
	})
	if err != nil {
		return nil, fmt.Errorf("vduse: %w", err)
	}
	if d.gpa, d.bounce, err = d.fe.Alloc(bounceSize, pageSize); err != nil {
		return nil, fmt.Errorf("vduse: bounce pages: %w", err)
	}
	if err := d.create(); err != nil {
		return nil, fmt.Errorf("vduse: %s: %w", cfg.Name, err)
	}
	d.wg.Go(d.answerAll)
	// The driver is bound, and the kernel's questions of that are answered, before this returns.
	if err := netlink.VDPANewDev(cfg.Name, "", "vduse", netlink.VDPANewDevParams{}); err != nil {
		return nil, fmt.Errorf("vduse: %s: add to the vDPA bus: %w", cfg.Name, err)
	}
	d.added = true
	if _, err := d.Interface(); err != nil {
		return nil, err
	}
	return d, nil
}

// create makes the VDUSE device and opens it.
func (d *Device) create() (err error) {
	if d.control, err = unix.Open(Control, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", Control, err)
	}
	version := uint64(0)
	if _, err := ioctl(d.control, setAPIVersion, "VDUSE_SET_API_VERSION", &version); err != nil {
		return err
	}
	c := devConfig{
		Device: netDeviceID, Features: uint64(d.fe.Features() | deviceFeatures), VQNum: uint32(len(ringSizes)), VQAlign: pageSize,
		ConfigSize: netConfigLen, MAC: [6]byte(d.cfg.MAC), MaxPairs: 1, MTU: 1500,
	}
	copy(c.Name[:nameLen-1], d.cfg.Name)
	if d.cfg.MTU != 0 {
		c.MTU = uint16(d.cfg.MTU)
	}
	if _, err := ioctl(d.control, createDev, "VDUSE_CREATE_DEV", &c); err != nil {
		return err
	}
	d.made = true
	// Not blocking, so that Close ends a read.
	if d.fd, err = unix.Open(filepath.Join(filepath.Dir(Control), d.cfg.Name), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	d.file = os.NewFile(uintptr(d.fd), d.cfg.Name)
	for i, size := range ringSizes {
		if _, err := ioctl(d.fd, vqSetup, "VDUSE_VQ_SETUP", &vqConfig{Index: uint32(i), MaxSize: size}); err != nil {
			return fmt.Errorf("ring %d: %w", i, err)
		}
	}
	return nil
}

// answerAll answers the kernel until the device is closed.
func (d *Device) answerAll() {
	defer d.end()
	var question [messageLen]byte
	for {
		if _, err := d.file.Read(question[:]); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				d.fail(fmt.Errorf("question: %w", err))
			}
			return
		}
		var answer [messageLen]byte
		copy(answer[:], question[4:8]) // its number
		if err := d.answer(binary.NativeEndian.Uint32(question[:]), question[messageBody:]); err != nil {
			d.fail(err)
			answer[4] = resultFailed
		}
		if _, err := d.file.Write(answer[:]); err != nil && !errors.Is(err, os.ErrClosed) {
			d.fail(fmt.Errorf("answer: %w", err))
		}
	}
}

// answer does what the kernel asks for.
func (d *Device) answer(kind uint32, body []byte) error {
	switch kind {
	case setStatus:
		switch {
		case body[0] == 0:
			d.end()
		case body[0]&statusDriverOK != 0 && d.session == nil:
			return d.begin()
		}
		return nil
	case updateIOTLB:
		return nil // mappings that others than virtio_vdpa make
	case getVQState:
		return errors.New("the driver asks for a ring's state, which virtio_vdpa does for no driver")
	}
	return fmt.Errorf("question of kind %d", kind)
}

// begin makes a session of what the driver has set up.
func (d *Device) begin() error {
	var f uint64
	if _, err := ioctl(d.fd, getFeatures, "VDUSE_DEV_GET_FEATURES", &f); err != nil {
		return err
	}
	d.mu.Lock()
	d.driver = virtio.Features(f)
	d.mu.Unlock()
	s, err := d.newSession(virtio.Features(f))
	if err != nil {
		return err
	}
	d.session = s
	return nil
}

func (d *Device) end() {
	if d.session != nil {
		d.session.close()
		d.session = nil
	}
}

// Features are those that the driver accepted, 0 before it did.
func (d *Device) Features() virtio.Features {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.driver
}

// Interface is the name of the driver's interface, for as long as it is in the first network namespace, where it is made.
func (d *Device) Interface() (string, error) { return d.under("net/*") }

// Reload has the driver let go of the device and take it again, as when its module is loaded anew. It makes another interface.
func (d *Device) Reload() error {
	device, err := d.under("")
	if err != nil {
		return err
	}
	for _, verb := range []string{"unbind", "bind"} {
		if err := os.WriteFile("/sys/bus/virtio/drivers/virtio_net/"+verb, []byte(device), 0); err != nil {
			return fmt.Errorf("vduse: %s: %w", d.cfg.Name, err)
		}
	}
	return nil
}

// under is the name of what lies in the driver's virtio device, or of that.
func (d *Device) under(pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join("/sys/bus/vdpa/devices", d.cfg.Name, "virtio*", pattern))
	if err == nil && len(found) == 0 {
		err = ErrNoInterface
	}
	if err != nil {
		return "", fmt.Errorf("vduse: %s: %w", d.cfg.Name, errors.Join(err, d.Err()))
	}
	return filepath.Base(found[0]), nil
}

// Err is the first thing that went wrong since Open.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *Device) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = fmt.Errorf("vduse: %s: %w", d.cfg.Name, err)
	}
}

// Close takes the interface away and returns what went wrong before, too. It may be called again.
func (d *Device) Close() error {
	errs := []error{d.Err()}
	if d.added {
		// The driver says goodbye to a device that still answers.
		errs, d.added = append(errs, netlink.VDPADelDev(d.cfg.Name)), false
	}
	if d.file != nil {
		errs, d.file = append(errs, d.file.Close()), nil
		d.wg.Wait()
	}
	if d.made {
		var n name
		copy(n[:nameLen-1], d.cfg.Name)
		_, err := ioctl(d.control, destroyDev, "VDUSE_DESTROY_DEV", &n)
		errs, d.made = append(errs, err), false
	}
	if d.control >= 0 {
		errs, d.control = append(errs, unix.Close(d.control)), -1
	}
	if d.fe != nil {
		errs, d.fe = append(errs, d.fe.Close()), nil
	}
	return errors.Join(errs...)
}
