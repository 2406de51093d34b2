package controller

import (
	"fmt"
	"net"
	"os/user"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

const (
	maxVMName = 64
	maxVLAN   = 4094
)

// vmName takes the names that libvirt and Proxmox give: letters and digits of any script, and signs that neither break a line of a table
// nor do anything in a shell between single quotes. At both ends stands no blank, and no sign in front that a flag could begin with.
var vmName = regexp.MustCompile(`^[\p{L}\p{N}_(+]([\p{L}\p{M}\p{N}_.:@,=+()\[\]#~ -]*[\p{L}\p{M}\p{N}_.:@,=+()\[\]#~-])?$`)

// checkRequest validates what needs no look at the host.
func (c *Controller) checkRequest(req api.AttachRequest) (*attachment, error) {
	fail := func(format string, args ...any) (*attachment, error) {
		return nil, fmt.Errorf("attach: "+format, args...)
	}
	if req.Iface == "" {
		return fail("interface: %w: name one", ErrUsage)
	}
	for what, name := range map[string]string{"interface": req.Iface, "tap": req.Tap} {
		if strings.ContainsFunc(name, func(r rune) bool { return r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
			return fail("%s %q: %w: no interface has such a name: 'ip link' lists those there are", what, name, ErrUsage)
		}
	}
	if len(req.VM) > maxVMName || !vmName.MatchString(req.VM) {
		return fail("VM name %q: %w: use letters, digits, blanks and _.:@,=+()[]#~- (at most %d bytes, a letter or a digit first)", req.VM, ErrUsage, maxVMName)
	}
	mac, err := net.ParseMAC(req.MAC)
	if err != nil || len(mac) != macLen {
		return fail("MAC %q: %w: write it as 52:54:00:12:34:56", req.MAC, ErrUsage)
	}
	if mac[0]&1 != 0 || [macLen]byte(mac) == [macLen]byte{} {
		return fail("MAC %s: %w: a VM's address is a unicast one: give that of its NIC", req.MAC, ErrUsage)
	}
	if req.VLAN < 0 || req.VLAN > maxVLAN {
		return fail("VLAN %d: %w: use 1 to %d, or none", req.VLAN, ErrUsage, maxVLAN)
	}
	if req.Isolate && req.Policy.Isolate == nil {
		req.Policy.Isolate = &req.Isolate
	}
	if err := checkForeign(&req); err != nil {
		return fail("%w", err)
	}
	policy, err := applyPatch(c.newPolicy(), req.Policy)
	if err != nil {
		return fail("%w", err)
	}
	kept, err := api.Addresses{}.With(req.MACs, req.IPs).Canonical(req.MAC)
	if err != nil {
		return fail("%w: %w", ErrUsage, err)
	}
	k, err := c.kindFor(&req)
	if err != nil {
		return fail("%w", err)
	}
	return &attachment{req: req, kind: k, policy: policy, kept: kept, addr: datapath.Addr{VLAN: uint16(req.VLAN), MAC: [macLen]byte(mac)}}, nil
}

// checkTaken refuses a VM name used on any interface and a (VLAN, MAC) used on this one. The caller holds mu.
func (c *Controller) checkTaken(req api.AttachRequest, addr datapath.Addr) error {
	for _, u := range c.uplinks {
		for _, v := range u.vms {
			if v.req.VM == req.VM {
				return fmt.Errorf("attach: VM %s: %w on %s: 'rscctl detach %s --vm %s' first, or choose another name", req.VM, ErrTaken, u.name, u.name, api.ShellWord(req.VM))
			}
			if u.name == req.Iface && v.has(addr) {
				return fmt.Errorf("attach: MAC %s%s on %s: %w by VM %s: 'rscctl detach %s --vm %s' first, or give this VM another address",
					req.MAC, inVLAN(req.VLAN), u.name, ErrTaken, v.req.VM, u.name, api.ShellWord(v.req.VM))
			}
		}
	}
	for name, list := range c.waiting {
		for _, w := range list {
			if w.vm.Name == req.VM && !w.trying {
				return fmt.Errorf("attach: VM %s: %w: it waits for interface %s: 'rscctl detach %s --vm %s' first", req.VM, ErrTaken, name, name, api.ShellWord(req.VM))
			}
		}
	}
	return nil
}

// inVLAN names an access port's VLAN.
func inVLAN(id int) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf(" in VLAN %d", id)
}

// checkClaim refuses what another VM has: its socket, its tap. The caller holds mu.
func (c *Controller) checkClaim(a *attachment) error {
	claim := a.kind.claim()
	if claim == "" {
		return nil
	}
	for _, u := range c.uplinks {
		for _, other := range u.vms {
			if other.kind.claim() == claim {
				return fmt.Errorf("attach: %s: %w by VM %s: name another one, or 'rscctl detach %s --vm %s' first", claim, ErrTaken, other.req.VM, u.name, api.ShellWord(other.req.VM))
			}
		}
	}
	return nil
}

// parseOwner reads USER:GROUP, USER or :GROUP, as names or numbers.
func parseOwner(s string) (uid, gid int, err error) {
	uid, gid = -1, -1
	u, g, _ := strings.Cut(s, ":")
	if u == "" && g == "" {
		return 0, 0, fmt.Errorf("socket owner %q: %w: it names nobody: say USER:GROUP, whom QEMU runs as", s, ErrUsage)
	}
	if u != "" {
		if uid, err = strconv.Atoi(u); err != nil || uid < 0 {
			who, err := user.Lookup(u)
			if err != nil {
				return 0, 0, fmt.Errorf("socket owner %q: %w: this host has no user %q: name the one that QEMU runs as", s, ErrUsage, u)
			}
			uid, _ = strconv.Atoi(who.Uid)
		}
	}
	if g != "" {
		if gid, err = groupID(g); err != nil {
			return 0, 0, fmt.Errorf("socket owner %q: %w: this host has no group %q: name one that QEMU is in", s, ErrUsage, g)
		}
	}
	return uid, gid, nil
}
