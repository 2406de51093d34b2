package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/netns"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// hostWay is another way to a VM than ours. The kernel's own, unless it says otherwise: GRO on the uplink, a bridge, the VM's tap. FlushNS and Defer
// are what an operator may tune of that: how long NAPI may keep a packet for the next one, and how many polls in vain it makes before it asks for
// interrupts again.
type hostWay struct {
	FlushNS int
	Defer   int
	DPDK    bool // see dpdkway.go
}

const (
	bridgeName = "br0"
	tapName    = "vm0"
)

// makeHostWay runs in the process that has the uplink.
func (p *peer) makeHostWay(uplink string, arg json.RawMessage) error {
	var w hostWay
	if err := json.Unmarshal(arg, &w); err != nil {
		return err
	}
	if w.DPDK {
		return p.start(uplink)
	}
	return w.makeKernels(uplink)
}

func (w *hostWay) makeKernels(uplink string) error {
	la := netlink.NewLinkAttrs()
	la.Name = bridgeName
	bridge := &netlink.Bridge{LinkAttrs: la}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	l, err := netlink.LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("%s: %w", uplink, err)
	}
	if err := errors.Join(netlink.LinkSetMaster(l, bridge), netlink.LinkSetUp(bridge)); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	if err := netdev.SetOffload(uplink, "generic-receive-offload", true); err != nil { // on a veth it brings NAPI with it
		return fmt.Errorf("%s: %w", uplink, err)
	}
	// The folder of namespace names is a memory file system of this process's own: nothing in it outlives the process.
	sys := filepath.Join(netns.Dir, "sys")
	if err := os.Mkdir(sys, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
		return fmt.Errorf("sysfs: %w", err)
	}
	for name, value := range map[string]int{"gro_flush_timeout": w.FlushNS, "napi_defer_hard_irqs": w.Defer} {
		if err := os.WriteFile(filepath.Join(sys, "class/net", uplink, name), fmt.Append(nil, value), 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// tapNIC is the guest's NIC at the end of the kernel's way: the VM's side of the tap, played as by QEMU or, where this kernel has
// /dev/vhost-net, by the kernel.
type tapNIC struct{ vm *tapvm.VM }

func openTapNIC(c demo.NICConfig) (_ demo.NIC, err error) {
	host, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", c.HostPID))
	if err != nil {
		return nil, err
	}
	defer host.Close()
	own, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	o := tapvm.Options{
		Tap: tapName, Host: &netnstest.NS{NS: host}, Guest: &netnstest.NS{NS: own},
		MAC: c.MAC, MTU: c.MTU, BufferLen: c.BufferLen, GuestDev: c.Name, NAPI: c.NAPI,
	}
	if hasVhostNet() {
		o.Engine = tapvm.Vhost
	}
	vm, err := tapvm.Open(o)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	err = host.Do(func() error {
		tap, err := netlink.LinkByName(tapName)
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(tap, bridge)
	})
	if err != nil {
		vm.Kill()
		return nil, fmt.Errorf("bridge: %w", err)
	}
	return &tapNIC{vm: vm}, nil
}

func hasVhostNet() bool {
	f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func (n *tapNIC) Start() error              { return nil }
func (n *tapNIC) Features() virtio.Features { return tapvm.AllOffloads.Features() }
func (n *tapNIC) Err() error                { return n.vm.Err() }

func (n *tapNIC) Stats() stackguest.Stats {
	s := n.vm.Stats()
	return stackguest.Stats{
		RxFrames: s.Frames, RxBytes: s.Bytes, RxBuffers: s.Buffers, DataFrames: s.DataFrames, Segments: s.Segments, Largest: s.Largest,
		TxFrames: s.TxFrames, TxBytes: s.TxBytes, Violations: s.Violations, First: s.FirstBad, TapRefused: s.StackRefused, FirstTap: s.FirstBad,
		TapErrors: s.Lost,
	}
}

func (n *tapNIC) Close() error {
	n.vm.Kill()
	return errors.Join(n.vm.Err(), n.vm.Guest.NS.Close())
}
