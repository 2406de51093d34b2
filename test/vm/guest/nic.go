//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/vm/control"
)

const (
	netClass   = "/sys/class/net"
	driverDir  = "/sys/bus/virtio/drivers/virtio_net"
	bindWithin = 10 * time.Second
)

var errNoNIC = errors.New("there is no virtio NIC")

// nicName finds the interface of the virtio NIC: the test VM has one at most. It is looked up every time, because a
// driver that was bound again makes a new interface.
func (g *guest) nicName() string {
	found, _ := filepath.Glob(driverDir + "/virtio*/net/*")
	if len(found) == 0 {
		return ""
	}
	return filepath.Base(found[0])
}

func (g *guest) link() (netlink.Link, error) {
	name := g.nicName()
	if name == "" {
		return nil, errNoNIC
	}
	return netlink.LinkByName(name)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

func (g *guest) addr(a control.Addr) error {
	link, err := g.link()
	if err != nil {
		return err
	}
	for _, text := range a.Addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func (g *guest) nic() (*control.NIC, error) {
	name := g.nicName()
	if name == "" {
		return nil, errNoNIC
	}
	dir := filepath.Join(netClass, name)
	n := &control.NIC{
		MAC:      readLine(dir + "/address"),
		Carrier:  readLine(dir+"/carrier") == "1",
		Features: readLine(dir + "/device/features"),
		Stats:    map[string]uint64{},
	}
	var err error
	if n.Losses, err = readNumber(dir + "/carrier_down_count"); err != nil {
		return nil, err
	}
	if n.MTU, err = readNumber(dir + "/mtu"); err != nil {
		return nil, err
	}
	queues, _ := filepath.Glob(dir + "/queues/rx-*")
	n.RxQueues = len(queues)
	stats, err := os.ReadDir(dir + "/statistics")
	if err != nil {
		return nil, err
	}
	for _, s := range stats {
		if n.Stats[s.Name()], err = readNumber(filepath.Join(dir, "statistics", s.Name())); err != nil {
			return nil, err
		}
	}
	n.CPU = cpuTime()
	return n, nil
}

func readNumber(file string) (uint64, error) {
	v, err := strconv.ParseUint(readLine(file), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("counter %s: %w", filepath.Base(file), err)
	}
	return v, nil
}

// cpuTime reads the first line of /proc/stat: user nice system idle iowait irq softirq steal ..., in ticks of 1/100 s
// (proc(5)).
func cpuTime() control.CPU {
	var c control.CPU
	line, _, _ := strings.Cut(readLine("/proc/stat"), "\n")
	for i, field := range strings.Fields(line) {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil || i > 8 { // the label; and guest time, which user time includes
			continue
		}
		d := time.Duration(ticks) * (time.Second / 100)
		if i == 4 || i == 5 {
			c.Idle += d
		} else {
			c.Busy += d
		}
	}
	return c
}

func (g *guest) offload(o control.Offload) error {
	name := g.nicName()
	if name == "" {
		return errNoNIC
	}
	if err := netdev.SetOffload(name, o.Feature, o.On); err != nil {
		return fmt.Errorf("offload %s: %w", o.Feature, err)
	}
	return nil
}

// forget empties the neighbour tables: the next packet has to ask for the address again.
func (g *guest) forget() error {
	link, err := g.link()
	if err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.NeighList(link.Attrs().Index, family)
		if err != nil {
			return err
		}
		for _, n := range list {
			// An entry may expire between list and delete.
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("neighbour %s: %w", n.IP, err)
			}
		}
	}
	return nil
}

// rebind takes the driver off the device and puts it back, which resets the device and negotiates features again, as
// removing and loading the module would. The interface comes back without its addresses.
func (g *guest) rebind() error {
	found, _ := filepath.Glob(driverDir + "/virtio*")
	if len(found) == 0 {
		return errNoNIC
	}
	device := []byte(filepath.Base(found[0]))
	if err := os.WriteFile(driverDir+"/unbind", device, 0); err != nil {
		return err
	}
	if err := os.WriteFile(driverDir+"/bind", device, 0); err != nil {
		return err
	}
	for deadline := time.Now().Add(bindWithin); g.nicName() == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("rebind: no interface after %v", bindWithin)
		}
	}
	return nil
}
