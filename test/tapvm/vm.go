package tapvm

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/tap"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Engine is what moves the frames.
type Engine int

const (
	Userspace Engine = iota // as QEMU with vhost=off
	Vhost                   // as QEMU with vhost=on; needs /dev/vhost-net
)

func (e Engine) String() string {
	if e == Vhost {
		return "vhost"
	}
	return "userspace"
}

// ErrTapGone ends a VM whose tap was deleted under it.
var ErrTapGone = errors.New("the VM's tap is gone")

// GuestDev is the name of the guest's interface, as a rule.
const GuestDev = "eth0"

// Options describe a VM.
type Options struct {
	Tap       string           // of the host: created, or taken if it exists. Its link comes up
	Host      *netnstest.NS    // where Tap is
	Guest     *netnstest.NS    // where the guest's stack is; nil: a namespace is made
	MAC       net.HardwareAddr // of the guest; nil: 02:00:00:00:00:fe
	OwnMAC    bool             // Tap keeps the address that it has; otherwise it gets the one that libvirt gives: fe, and the guest's tail
	IPv4      netip.Prefix     // of the guest; invalid: none
	IPv6      netip.Prefix     // and without one IPv6 is off
	MTU       int              // of both ends, 0: 1500
	Engine    Engine
	Without   Offload // what the guest's driver has not acknowledged
	With      Offload // what it has beside AllOffloads
	BufferLen int     // bytes of a receive buffer, 0: 4096
	RingSize  int     // of the receive ring (Vhost), 0: 1024
	GuestDev  string  // the guest's interface, "": GuestDev
	NAPI      bool    // frames pass GRO in the guest's stack
	NoHeader  bool    // the tap has no vnet header, and so no offloads: QEMU with vnet_hdr=off. Userspace only
}

// VM is a running one. Its methods may be called from any goroutine.
type VM struct {
	Guest *netnstest.Side // the guest's end: its namespace, interface and addresses
	Index int             // interface index of the host's tap

	outer, inner *Tap
	engine       engine
	stop         int // eventfd
	done         chan struct{}
	err          error // before done is closed
	once         sync.Once
	closeErr     error // after Kill

	mu       sync.Mutex
	stats    Stats
	features virtio.Features // what a frame may claim
	want     virtio.Features // what it may claim once the tap has been empty since switched
	switched time.Time
}

// Start makes the VM and its guest. When the test ends it is killed, and the test fails if a frame was one that the guest must not
// be given.
func Start(t testing.TB, o Options) *VM {
	t.Helper()
	needs := []netnstest.Requirement{netnstest.TAP}
	if o.Engine == Vhost {
		needs = append(needs, netnstest.Vhost)
	}
	netnstest.Need(t, needs...)
	if o.Guest == nil {
		o.Guest = netnstest.Namespace(t)
	}
	side := &netnstest.Side{NS: o.Guest}
	for name, value := range map[string]string{"accept_dad": "0", "dad_transmits": "0", "router_solicitations": "0"} {
		for _, where := range []string{"all", "default"} {
			side.Sysctl(t, "net/ipv6/conf/"+where+"/"+name, value)
		}
	}
	if !o.IPv6.IsValid() {
		side.Sysctl(t, "net/ipv6/conf/default/disable_ipv6", "1")
	}
	vm, err := Open(o)
	if err != nil {
		t.Fatalf("VM behind %s: %v", o.Tap, err)
	}
	t.Cleanup(func() {
		vm.Kill()
		if err := errors.Join(vm.Err(), vm.closeErr); err != nil && !errors.Is(err, ErrTapGone) {
			t.Errorf("VM behind %s: %v", o.Tap, err)
		}
		if s := vm.Stats(); s.Violations+s.StackRefused > 0 {
			t.Errorf("VM behind %s: %d frames broke the rules and %d the guest's stack refused: %s", o.Tap, s.Violations, s.StackRefused, s.FirstBad)
		}
	})
	return vm
}

// Open is Start for a program: the guest's namespace has to be given, settings of its stack are the caller's, and so are the judgement of
// Stats and Kill.
func Open(o Options) (*VM, error) {
	o.complete()
	offloads := (AllOffloads | o.With) &^ o.Without
	if o.NoHeader {
		offloads = 0
	}
	vm := &VM{
		Guest: &netnstest.Side{NS: o.Guest, Dev: o.GuestDev, MAC: o.MAC, IPv4: o.IPv4, IPv6: o.IPv6},
		stop:  -1, done: make(chan struct{}), features: offloads.Features(), want: offloads.Features(),
	}
	if err := vm.start(o, offloads); err != nil {
		_ = vm.free()
		return nil, err
	}
	go func() {
		vm.err = vm.loop()
		close(vm.done)
	}()
	return vm, nil
}

func (o *Options) complete() {
	if o.GuestDev == "" {
		o.GuestDev = GuestDev
	}
	if o.MAC == nil {
		o.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.BufferLen == 0 {
		o.BufferLen = 4096
	}
}

func (vm *VM) start(o Options, offloads Offload) (err error) {
	if vm.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	hdrLen := virtio.HdrSize
	if o.NoHeader {
		hdrLen = 0
	}
	err = o.Host.Do(func() (err error) {
		if vm.outer, err = OpenTap(o.Tap, hdrLen, offloads); err != nil {
			return err
		}
		l, err := netlink.LinkByName(o.Tap)
		if err != nil {
			return err
		}
		vm.Index = l.Attrs().Index
		if !o.OwnMAC {
			err = netlink.LinkSetHardwareAddr(l, append(net.HardwareAddr{0xfe}, o.MAC[1:]...))
		}
		return errors.Join(err, netlink.LinkSetMTU(l, o.MTU), netlink.LinkSetUp(l))
	})
	if err != nil {
		return err
	}
	if err := vm.startGuest(o, offloads); err != nil {
		return err
	}
	if o.Engine == Vhost {
		g, err := tap.OpenGuest(tap.GuestConfig{Tap: vm.outer.FD, RingSize: o.RingSize, BufferLen: o.BufferLen})
		if err != nil {
			return err
		}
		vm.engine = &vhost{guest: g}
	} else {
		vm.engine = &userspace{tap: vm.outer, bufferLen: o.BufferLen, buf: make([]byte, MaxRead)}
	}
	return vm.settled()
}

// startGuest makes the guest's interface. What it may send with a partial checksum or unsegmented is what the host's tap, written
// to, takes: everything, unless it has no header.
func (vm *VM) startGuest(o Options, offloads Offload) error {
	return o.Guest.Do(func() (err error) {
		var flags uint16
		if o.NAPI {
			flags = unix.IFF_NAPI
		}
		if vm.inner, err = openTap(o.GuestDev, virtio.HdrSize, offloads, flags); err != nil {
			return err
		}
		l, err := netlink.LinkByName(o.GuestDev)
		if err != nil {
			return err
		}
		vm.Guest.Index = l.Attrs().Index
		if err := errors.Join(netlink.LinkSetHardwareAddr(l, o.MAC), netlink.LinkSetMTU(l, o.MTU)); err != nil {
			return err
		}
		for _, p := range []netip.Prefix{o.IPv4, o.IPv6} {
			if !p.IsValid() {
				continue
			}
			a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
		return netlink.LinkSetUp(l)
	})
}

// settled waits until the guest's interface carries frames.
func (vm *VM) settled() error {
	for range 400 {
		up := false
		err := vm.Guest.NS.Do(func() error {
			l, err := netlink.LinkByIndex(vm.Guest.Index)
			if err == nil {
				up = l.Attrs().OperState == netlink.OperUp || l.Attrs().OperState == netlink.OperUnknown
			}
			return err
		})
		if err != nil || up {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("the guest's interface does not come up")
}

// Stats returns the counters.
func (vm *VM) Stats() Stats {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.stats
}

// SetOffload switches what the guest takes, as its driver does by ctrl_guest_offloads. Frames that are under way may still be of
// the old kind.
func (vm *VM) SetOffload(o Offload) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.want = o.Features()
	vm.features |= vm.want
	err := vm.outer.SetOffload(o)
	vm.switched = time.Now()
	return err
}

// drained is called when the tap was found empty.
func (vm *VM) drained() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	// A sender that looked at the tap's features before the switch may still be about to queue its frame.
	if vm.features != vm.want && time.Since(vm.switched) > 20*time.Millisecond {
		vm.features = vm.want
	}
}

// Done is closed when the VM has ended: it was killed or its tap has gone.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// Err is why it ended, nil before and after Kill.
func (vm *VM) Err() error {
	select {
	case <-vm.done:
		return vm.err
	default:
		return nil
	}
}

// Kill ends the VM at once, as a killed QEMU: its tap closes, and is removed unless it is persistent. Frames under way are lost.
func (vm *VM) Kill() {
	vm.once.Do(func() {
		one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
		_, _ = unix.Write(vm.stop, one)
		<-vm.done
		vm.closeErr = vm.free()
	})
}

func (vm *VM) free() (err error) {
	if vm.engine != nil {
		err = vm.engine.close()
	}
	for _, t := range []*Tap{vm.outer, vm.inner} {
		if t != nil {
			err = errors.Join(err, t.Close())
		}
	}
	if vm.stop >= 0 {
		_ = unix.Close(vm.stop)
	}
	return err
}
