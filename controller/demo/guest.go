package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// guest is the virtual machine of the demo: a vhost-user front-end, a tap, and this namespace's network stack behind it.
type guest struct {
	endpoint endpoint
	born     time.Time
	vm       NIC
	extra    Extra
	sys      string // where this namespace's sysfs is mounted, "" not yet
}

func newGuest(x Extra) *guest { return &guest{born: time.Now(), extra: x} }

func (g *guest) do(q *request) (*reply, error) {
	switch q.Op {
	case "network":
		if err := socketBuffers(); err != nil {
			return nil, err
		}
		return nil, g.start(q)
	case "stop":
		return nil, g.stop()
	case "features":
		if g.vm == nil {
			return nil, errNoNIC
		}
		return &reply{Names: g.vm.Features().Names()}, nil
	case "snapshot":
		return g.snapshot()
	}
	return g.extra.or(&g.endpoint, q)
}

var errNoNIC = errors.New("the guest has no NIC")

// frontEndTimeout bounds the connection to the back-end's socket.
const frontEndTimeout = 5 * time.Second

// start makes the NIC: it connects to the back-end, creates the tap, gives it its address and lets frames flow. A NIC
// from before is removed first, as by a reboot with other settings; connections do not survive that, addresses return.
func (g *guest) start(q *request) error {
	if err := g.stop(); err != nil {
		return err
	}
	vm, err := g.open(q)
	if err != nil {
		return err
	}
	g.vm = vm
	if err := g.setGRO(q); err != nil {
		return err
	}
	address, bits := guestIP4, bits4
	if q.IPv6 {
		address, bits = guestIP6, bits6
	}
	if err := bringUp(nicName, address, bits, 1000); err != nil {
		return err
	}
	return vm.Start()
}

func (g *guest) open(q *request) (NIC, error) {
	if q.PeerPID != 0 {
		return g.extra.NIC(NICConfig{HostPID: q.PeerPID, Name: nicName, MAC: guestMAC, MTU: mtu, BufferLen: q.BufferLen, NAPI: q.NAPI})
	}
	ctx, cancel := context.WithTimeout(context.Background(), frontEndTimeout)
	defer cancel()
	return stackguest.Open(ctx, stackguest.Config{
		Socket: q.Socket, Tap: nicName, MAC: guestMAC, BufferLen: q.BufferLen, NAPI: q.NAPI,
		Features: virtio.Features(q.Features),
	})
}

// groTimeout is how long the guest's own GRO may keep a packet for the next one, in nanoseconds. The tap hands over one
// frame per system call and its NAPI ends after each, so without it nothing would ever merge.
const groTimeout = "50000"

// setGRO decides whether the guest's stack merges for itself. Frames go through GRO only when the tap has NAPI.
func (g *guest) setGRO(q *request) error {
	if err := netdev.SetOffload(nicName, "generic-receive-offload", q.NAPI); err != nil {
		return fmt.Errorf("nic: %w", err)
	}
	if !q.NAPI {
		return nil
	}
	if g.sys == "" {
		if err := mountSys(q.SysFolder); err != nil {
			return err
		}
		g.sys = q.SysFolder
	}
	for _, s := range []struct{ name, value string }{{"gro_flush_timeout", groTimeout}, {"napi_defer_hard_irqs", "2"}} {
		path := filepath.Join(g.sys, "class/net", nicName, s.name)
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("nic: %s: %w", s.name, err)
		}
	}
	return nil
}

func (g *guest) stop() error {
	if g.vm == nil {
		return nil
	}
	err := g.judge()
	err = errors.Join(err, g.vm.Close())
	g.vm = nil
	return err
}

// ErrHeader is returned when the controller gave the guest a frame that it must not have given.
var ErrHeader = errors.New("a frame broke the rules of virtio")

// judge says what was wrong with the frames so far, by our validator and by the kernel.
func (g *guest) judge() error {
	if err := g.vm.Err(); err != nil {
		return err
	}
	switch s := g.vm.Stats(); {
	case s.Violations > 0:
		return fmt.Errorf("%w: %d of %d frames, the first: %s", ErrHeader, s.Violations, s.RxFrames, s.First)
	case s.TapRefused > 0:
		return fmt.Errorf("%w: the kernel refused %d of %d frames, the first: %s", ErrHeader, s.TapRefused, s.RxFrames, s.FirstTap)
	}
	return nil
}

func (g *guest) snapshot() (*reply, error) {
	if g.vm == nil {
		return nil, errNoNIC
	}
	if err := g.judge(); err != nil {
		return nil, err
	}
	n, err := nic(nicName)
	if err != nil {
		return nil, err
	}
	packets, err := ipReceived()
	if err != nil {
		return nil, err
	}
	retransmits, congestion := g.endpoint.sending()
	return &reply{Snap: &snapshot{
		Clock: time.Since(g.born), CPU: cpuTime(), Received: g.endpoint.received.Load(), Retrans: retransmits, Congestion: congestion,
		NIC: n, Packets: packets, Guest: g.vm.Stats(),
	}}, nil
}

func (g *guest) close() error {
	g.endpoint.close()
	return g.stop()
}
