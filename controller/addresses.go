package controller

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
)

// A VM has the MAC address that it is attached with, and may have further ones: of VRRP, of a macvlan or a nested bridge in the guest.
// Each is steered, is in the NIC's unicast filter, and is a source address that the VM may use; none is another VM's, or the host's.

// addrs are the VM's addresses, the one that it is attached with first.
func (a *attachment) addrs() []datapath.Addr {
	out := []datapath.Addr{a.addr}
	macs, _ := api.ParseMACs(a.kept.MACs) // they were checked
	for _, m := range macs {
		out = append(out, datapath.Addr{VLAN: a.addr.VLAN, MAC: m})
	}
	return out
}

// stations are all the addresses at which an uplink's VMs are reached.
func (u *uplink) stations() []netdev.Station {
	var who []netdev.Station
	for _, a := range u.sorted() {
		for _, addr := range a.addrs() {
			who = append(who, netdev.Station{MAC: addr.MAC, VLAN: addr.VLAN})
		}
	}
	return who
}

func (a *attachment) has(addr datapath.Addr) bool { return slices.Contains(a.addrs(), addr) }

func keyOf(addr datapath.Addr) bpf.PortKey { return bpf.PortKey{VLAN: addr.VLAN, MAC: addr.MAC} }

// steered is what XDP knows of a VM all of whose frames come to us.
func steered(a *attachment) bpf.PortValue { return bpf.PortValue{Port: a.id(), Flags: bpf.FlagSteer} }

// checkFurther refuses further addresses of a VM, attached or to be, that are another's, and more than the uplink can have. The caller
// holds mu.
func (c *Controller) checkFurther(vm, iface string, vlan uint16, kept api.Addresses) error {
	u := c.uplinks[iface]
	if u == nil || len(kept.MACs) == 0 {
		return nil
	}
	next := attachment{addr: datapath.Addr{VLAN: vlan}, kept: kept}
	all := 1 + len(kept.MACs)
	for _, other := range u.vms {
		if other.req.VM == vm {
			continue
		}
		all += 1 + len(other.kept.MACs)
		for _, addr := range next.addrs()[1:] {
			if other.has(addr) {
				return fmt.Errorf("MAC %s%s on %s: %w by VM %s: give this VM another address", net.HardwareAddr(addr.MAC[:]), inVLAN(int(vlan)), iface, ErrTaken, other.req.VM)
			}
		}
	}
	if all > maxPorts {
		return fmt.Errorf("interface %s: %w: its VMs would have %d MAC addresses, and %d is the most", iface, ErrLimit, all, maxPorts)
	}
	return nil
}

// checkOwn refuses addresses that are the host's own, on an interface or on what is on top of it: what comes for them is the host's, and would
// be a VM's.
func checkOwn(addrs []datapath.Addr, uplink *netdev.Facts) error {
	all, err := netdev.AddressesOn(uplink.Index)
	if err != nil {
		return fmt.Errorf("the host's addresses on %s: %w", uplink.Name, err)
	}
	for _, own := range all {
		if mac := own.MAC; slices.Contains(addrs, datapath.Addr{VLAN: own.VLAN, MAC: mac}) {
			return fmt.Errorf("MAC %s is %s's own: %w: give the VM its own address", net.HardwareAddr(mac[:]), own.Dev, ErrUsage)
		}
	}
	return nil
}

// readdress gives the VM other addresses while it runs. A new one is received before it is steered, and steered last; an old one is no
// longer steered before it is forgotten. The caller holds a.mu.
func (a *attachment) readdress(kept api.Addresses) error {
	was := a.addrs()
	next := attachment{addr: a.addr, kept: kept}
	now := next.addrs()
	fresh := without(now, was)
	for i, addr := range fresh {
		if err := a.up.mcast.AddUnicast(addr.MAC[:]); err != nil {
			for _, done := range fresh[:i] {
				err = errors.Join(err, a.up.mcast.DelUnicast(done.MAC[:]))
			}
			return fmt.Errorf("unicast filter: %w", err)
		}
	}
	a.kept = kept
	var errs []error
	for _, addr := range without(was, now) {
		if err := a.up.prog.DeletePort(keyOf(addr)); err != nil && !errors.Is(err, bpf.ErrNoPort) {
			errs = append(errs, err)
		}
		errs = append(errs, a.up.mcast.DelUnicast(addr.MAC[:]))
	}
	errs = append(errs, a.amend())
	for _, addr := range fresh {
		errs = append(errs, a.up.prog.SetPort(keyOf(addr), steered(a)))
	}
	return errors.Join(errs...)
}

// without are the addresses of a list that another has not.
func without(list, other []datapath.Addr) []datapath.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(a datapath.Addr) bool { return slices.Contains(other, a) })
}
