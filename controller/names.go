package controller

import (
	"errors"
	"fmt"
	"net"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/near"
	"github.com/rscctl/rscctl/controller/netdev"
)

// likeLink hints at the interface that was meant by a name that no interface has, "" for any other error.
func likeLink(name string, err error) string {
	if !errors.Is(err, netdev.ErrNoDevice) {
		return ""
	}
	links, err := net.Interfaces()
	if err != nil {
		return ""
	}
	var known []string
	for _, l := range links {
		known = append(known, l.Name)
	}
	return near.Hint(name, known)
}

// unknownVM says that no VM of a name is attached, and what is: that it waits, or the VM that was meant. The caller holds mu.
func (c *Controller) unknownVM(name string) error {
	var known []string
	for _, u := range c.uplinks {
		for vm := range u.vms {
			known = append(known, vm)
		}
	}
	for iface, list := range c.waiting {
		for _, w := range list {
			if w.vm.Name == name {
				return fmt.Errorf("VM %s: %w: it waits for %s (%s): 'rscctl detach %s --vm %s' gives it up", name, ErrUnknownVM, iface, w.cause, iface, api.ShellWord(name))
			}
			known = append(known, w.vm.Name)
		}
	}
	return fmt.Errorf("VM %s: %w: %s'rscctl status' lists what is", name, ErrUnknownVM, near.Hint(name, known))
}

// unknownIface says that an interface is not attached, and which one was meant. The caller holds mu.
func (c *Controller) unknownIface(name string) error {
	var known []string
	for iface := range c.uplinks {
		known = append(known, iface)
	}
	for iface := range c.waiting {
		if iface == name {
			return fmt.Errorf("interface %s: %w: its VMs wait: 'rscctl status' says for what", name, ErrUnknownIface)
		}
		known = append(known, iface)
	}
	return fmt.Errorf("interface %s: %w: %s'rscctl status' lists what is", name, ErrUnknownIface, near.Hint(name, known))
}
