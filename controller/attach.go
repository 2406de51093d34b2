package controller

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"regexp"
	"strconv"
	"strings"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/vhost"
)

const (
	maxPairs    = 8
	maxVMName   = 64
	maxVLAN     = 4094
	defaultMode = 0o660
)

var vmName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*$`)

// Attach puts one VM on an interface, which becomes an uplink with the first. It leaves nothing behind when it fails.
func (c *Controller) Attach(req api.AttachRequest) (api.AttachResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retainFlows() // of a VM of this name whose detach a crash cut short
	return c.attach(req, false)
}

// attach does it. With again the VM was attached before, and may have come back behind another tap. The caller holds mu.
func (c *Controller) attach(req api.AttachRequest, again bool) (api.AttachResponse, error) {
	resp := api.AttachResponse{Schema: api.Schema, Iface: req.Iface, VM: req.VM, DryRun: req.DryRun, Changes: []string{}, Warnings: []string{}}
	v, cfg, err := c.checkRequest(req)
	if err != nil {
		return resp, err
	}
	if err := c.checkTaken(req, v.addr); err != nil {
		return resp, err
	}
	u := c.uplinks[req.Iface]
	var facts *netdev.Facts
	chunk := 0
	if u == nil {
		if facts, chunk, err = inspectUplink(req.Iface, v.addr.VLAN); err != nil {
			return resp, err
		}
	} else {
		facts, chunk = u.facts, u.chunk
	}
	if addr := facts.MAC; addr.String() == net.HardwareAddr(v.addr.MAC[:]).String() && v.addr.VLAN == 0 {
		return resp, fmt.Errorf("attach: MAC %s is %s's own: %w: give the VM its own address", req.MAC, req.Iface, ErrUsage)
	}
	todo, warnings, err := planOffloads(facts, req)
	if err != nil {
		return resp, err
	}
	if v.tap != nil {
		said, err := c.planTap(v, facts, again)
		if err != nil {
			return resp, err
		}
		warnings = append(warnings, said...)
	}
	resp.Warnings = append(resp.Warnings, warnings...)
	if u == nil {
		resp.Changes = append(resp.Changes, fmt.Sprintf("attach an XDP program and %d AF_XDP sockets to %s (the link may flap)", facts.RxQueues, req.Iface))
	}
	resp.Changes = append(resp.Changes, fmt.Sprintf("add %s to %s's unicast filter", req.MAC, req.Iface))
	for _, ch := range todo {
		resp.Changes = append(resp.Changes, ch.text())
	}
	if v.tap != nil {
		resp.Changes = append(resp.Changes, tapChanges(v)...)
	} else if err := vhost.CheckSocket(cfg); err != nil { // before anything of the host is touched
		return resp, fmt.Errorf("attach: %w", err)
	}
	if req.DryRun {
		return resp, nil
	}
	if err := c.attachNow(u, facts, chunk, v, cfg, todo, &resp); err != nil {
		return resp, err
	}
	c.log.Info("attached", "iface", req.Iface, "vm", req.VM, "mac", req.MAC, "vlan", req.VLAN, "feed", v.feed(), "to", cmp.Or(req.VhostUser, v.req.Tap))
	for _, w := range resp.Warnings {
		c.log.Warn(w, "iface", req.Iface)
	}
	return resp, nil
}

// attachNow makes the changes, each undone again if a later one fails. The caller holds mu.
func (c *Controller) attachNow(u *uplink, facts *netdev.Facts, chunk int, v *vmPort, cfg vhost.Config, todo []change, resp *api.AttachResponse) (err error) {
	var done []change
	fresh := u == nil
	c.touched = true
	defer func() {
		if err == nil {
			return
		}
		if fresh && u != nil {
			_ = u.close()
			c.watcher.Remove(u.facts.Index)
			delete(c.uplinks, u.name)
		}
		_ = c.putBack(done)
	}()
	if done, err = c.applyChanges(facts.Name, todo); err != nil {
		return err
	}
	if c.flows == nil {
		if err := c.openFlows(); err != nil {
			return err
		}
	}
	if fresh {
		if u, err = openUplink(facts, chunk, c.flows, c.lookSoon, c.log); err != nil {
			return err
		}
		resp.Warnings = append(resp.Warnings, u.warnings...)
		if err := u.checkTags(); err != nil {
			return err
		}
		if err := c.watchUplink(u); err != nil {
			return err
		}
	}
	if err := u.addPort(v, cfg); err != nil {
		return err
	}
	if v.tap != nil { // what happens to the tap is noticed at once; a failure to listen costs a tick
		if _, err := c.watcher.Add(v.tap.facts.Name); err != nil {
			v.log.Warn("tap: watch", "err", err)
		}
	}
	before := u.changes
	noted := u.keepChanges(done)
	c.uplinks[u.name] = u
	if err := c.saveState(); err != nil {
		u.changes = before
		return errors.Join(err, c.dropPort(v))
	}
	if err := c.state.Forget(noted...); err != nil {
		c.log.Warn("noted twice on the undo list", "err", err)
	}
	return nil
}

// watchUplink begins to follow an interface from how it is with its program on it.
func (c *Controller) watchUplink(u *uplink) error {
	facts, err := c.watcher.Add(u.name)
	if err != nil {
		return err
	}
	if why := u.want().Broken(facts); why != "" || facts.Index != u.facts.Index {
		return fmt.Errorf("interface %s: changed while it was attached: %s", u.name, cmp.Or(why, "it was made anew"))
	}
	u.facts = facts
	return nil
}

// addPort opens the way to the VM and steers its address to it. On failure nothing of it stays.
func (u *uplink) addPort(v *vmPort, cfg vhost.Config) error {
	idx, gen, err := u.freeIndex()
	if err != nil {
		return err
	}
	v.idx, v.gen, v.up, v.log = idx, gen, u, u.log.With("vm", v.req.VM)
	if err := u.mcast.AddUnicast(net.HardwareAddr(v.addr.MAC[:])); err != nil {
		return fmt.Errorf("interface %s: unicast filter: %w", u.name, err)
	}
	if err := u.each(func(q *queue) error { return q.Add(v.portConfig()) }); err != nil {
		return errors.Join(err, u.removePort(v))
	}
	if err := u.countFlows(v); err != nil {
		return errors.Join(err, u.removePort(v))
	}
	add := u.addTap
	if v.tap == nil {
		add = func(v *vmPort) error { return u.addUser(v, cfg) }
	}
	if err := add(v); err != nil {
		return errors.Join(err, u.removePort(v))
	}
	u.ports[v.req.VM], u.byIdx[idx] = v, v
	return nil
}

// countFlows has the VM's flows counted in its own map.
func (u *uplink) countFlows(v *vmPort) (err error) {
	if v.flows, err = u.flows.VM(v.req.VM); err != nil {
		return err
	}
	return u.prog.SetFlows(v.id(), v.flows)
}

// addUser opens the VM's vhost-user port.
func (u *uplink) addUser(v *vmPort, cfg vhost.Config) error {
	cfg.MTU = u.facts.MTU
	cfg.Hooks = vhost.Hooks{Started: v.started, BeforePause: v.beforePause, BeforeStop: v.beforeStop, Stopped: v.stopped}
	cfg.Logf = func(format string, args ...any) { v.log.Warn(fmt.Sprintf(format, args...)) }
	port, err := vhost.NewPort(cfg)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.port = port
	v.mu.Unlock()
	if err := u.prog.SetPort(v.key(), bpf.PortValue{Port: v.id(), Flags: bpf.FlagSteer}); err != nil {
		return err
	}
	return u.setSteering(v.idx, true)
}

// removePort takes a VM off: no more steering, held segments delivered, socket closed. Safe on a half-added port.
func (u *uplink) removePort(v *vmPort) error {
	var errs []error
	if err := u.prog.DeletePort(v.key()); err != nil && !errors.Is(err, bpf.ErrNoPort) {
		errs = append(errs, err)
	}
	if v.tap != nil {
		errs = append(errs, v.removeTap())
	}
	if v.port != nil {
		errs = append(errs, v.port.Close())
	}
	errs = append(errs, u.prog.SetFlows(v.id(), nil), u.setSteering(v.idx, false))
	errs = append(errs, u.each(func(q *queue) error { return q.Remove(v.idx) }))
	errs = append(errs, u.mcast.DelUnicast(net.HardwareAddr(v.addr.MAC[:])))
	if u.ports[v.req.VM] == v {
		delete(u.ports, v.req.VM)
		u.byIdx[v.idx] = nil
	}
	return errors.Join(errs...)
}

// Detach takes one VM, or with VM empty every VM, off an interface. With the last one the interface is given back.
func (c *Controller) Detach(req api.DetachRequest) (api.DetachResponse, error) {
	resp := api.DetachResponse{Schema: api.Schema, Iface: req.Iface, VMs: []string{}, Restored: []string{}, Warnings: []string{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.uplinks[req.Iface]
	found := c.detachWaiting(req, &resp)
	if u == nil && !found {
		return resp, fmt.Errorf("detach: interface %s: %w: 'rscctl status' lists what is", req.Iface, ErrUnknownIface)
	}
	var errs []error
	if u != nil {
		for name, v := range u.ports {
			if req.VM == "" || req.VM == name {
				found = true
				resp.VMs = append(resp.VMs, name)
				resp.Restored = append(resp.Restored, fmt.Sprintf("%s removed from %s's unicast filter", v.req.MAC, u.name))
				errs = append(errs, c.dropPort(v))
			}
		}
		if !found {
			return resp, fmt.Errorf("detach: VM %s on %s: %w: 'rscctl status' lists what is", req.VM, req.Iface, ErrUnknownVM)
		}
		if len(u.ports) == 0 {
			restored, err := c.closeUplink(u)
			resp.Restored = append(resp.Restored, restored...)
			errs = append(errs, err)
		}
	}
	resp.Warnings = c.saveInForce()
	c.retainFlows()
	if len(c.uplinks) == 0 && len(c.waiting) == 0 && c.flows != nil {
		errs = append(errs, c.dropFlows())
	}
	for _, vm := range resp.VMs {
		delete(c.retries, vm)
	}
	c.log.Info("detached", "iface", req.Iface, "vms", strings.Join(resp.VMs, ","))
	return resp, errors.Join(errs...)
}

// dropFlows removes the pinned flow maps after the last detach; the next attach makes new ones. The caller holds mu.
func (c *Controller) dropFlows() error {
	err := c.flows.Close()
	c.flows = nil
	if c.flowsPin != "" {
		if rerr := os.Remove(c.flowsPin); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		_ = os.Remove(c.opt.BPFFS) // ours when empty; it stays when the operator keeps other pins in it
		c.flowsPin = ""
	}
	if err != nil {
		return fmt.Errorf("flow maps: %w", err)
	}
	return nil
}

// checkRequest validates what needs no look at the host.
func (c *Controller) checkRequest(req api.AttachRequest) (*vmPort, vhost.Config, error) {
	fail := func(format string, args ...any) (*vmPort, vhost.Config, error) {
		return nil, vhost.Config{}, fmt.Errorf("attach: "+format, args...)
	}
	if req.Iface == "" {
		return fail("interface: %w: name one", ErrUsage)
	}
	if len(req.VM) > maxVMName || !vmName.MatchString(req.VM) {
		return fail("VM name %q: %w: use letters, digits and _.:- (at most %d)", req.VM, ErrUsage, maxVMName)
	}
	mac, err := net.ParseMAC(req.MAC)
	if err != nil || len(mac) != macLen {
		return fail("MAC %q: %w: write it as 52:54:00:12:34:56", req.MAC, ErrUsage)
	}
	if mac[0]&1 != 0 || [macLen]byte(mac) == [macLen]byte{} {
		return fail("MAC %s: %w: a VM's address is a unicast one", req.MAC, ErrUsage)
	}
	if req.VLAN < 0 || req.VLAN > maxVLAN {
		return fail("VLAN %d: %w: use 1 to %d, or none", req.VLAN, ErrUsage, maxVLAN)
	}
	switch {
	case req.VhostUser == "" && req.Tap == "" && req.Domain == "":
		return fail("feed: %w: give a socket with --vhost-user, or the VM's tap with --tap", ErrUsage)
	case req.VhostUser != "" && (req.Tap != "" || req.Domain != ""):
		return fail("feed: %w: give either --vhost-user or --tap", ErrUsage)
	case req.TrustTap && req.Tap == "":
		return fail("trust-tap: %w: it is your word for the tap that --tap names", ErrUsage)
	case req.Tap == req.Iface:
		return fail("tap %s: %w: it is the interface itself: name the VM's tap", req.Tap, ErrUsage)
	case req.VhostUser == "" && req.AllowSpoof:
		return fail("allow-spoof: %w: what a VM sends through its own tap does not pass us", ErrUsage)
	}
	policy, err := applyPatch(defaultPolicy(), req.Policy)
	if err != nil {
		return fail("%w", err)
	}
	cfg := vhost.Config{Name: req.VM, Socket: req.VhostUser, Connect: req.Connect, MaxPairs: maxPairs, MaxBuffers: vhost.LinuxBuffers, Mode: defaultMode, UID: -1, GID: -1}
	if req.SocketMode != "" {
		m, err := strconv.ParseUint(req.SocketMode, 8, 12)
		if err != nil || m > 0o777 {
			return fail("socket mode %q: %w: write it octal, like 0660", req.SocketMode, ErrUsage)
		}
		cfg.Mode = os.FileMode(m)
	}
	if req.SocketOwner != "" {
		if cfg.UID, cfg.GID, err = parseOwner(req.SocketOwner); err != nil {
			return fail("%w", err)
		}
	}
	v := &vmPort{req: req, policy: policy, addr: datapath.Addr{VLAN: uint16(req.VLAN), MAC: [macLen]byte(mac)}}
	if req.VhostUser == "" {
		v.tap = &tapGuest{}
	}
	return v, cfg, nil
}

// parseOwner reads USER:GROUP, USER or :GROUP, as names or numbers.
func parseOwner(s string) (uid, gid int, err error) {
	uid, gid = -1, -1
	u, g, _ := strings.Cut(s, ":")
	if u != "" {
		if uid, err = strconv.Atoi(u); err != nil {
			who, err := user.Lookup(u)
			if err != nil {
				return 0, 0, fmt.Errorf("socket owner %q: %w: %w", s, ErrUsage, err)
			}
			uid, _ = strconv.Atoi(who.Uid)
		}
	}
	if g != "" {
		if gid, err = strconv.Atoi(g); err != nil {
			grp, err := user.LookupGroup(g)
			if err != nil {
				return 0, 0, fmt.Errorf("socket owner %q: %w: %w", s, ErrUsage, err)
			}
			gid, _ = strconv.Atoi(grp.Gid)
		}
	}
	return uid, gid, nil
}

// checkTaken refuses a VM name used on any interface and a (VLAN, MAC) used on this one. The caller holds mu.
func (c *Controller) checkTaken(req api.AttachRequest, addr datapath.Addr) error {
	for _, u := range c.uplinks {
		for _, v := range u.ports {
			if v.req.VM == req.VM {
				return fmt.Errorf("attach: VM %s: %w on %s: detach it first, or choose another name", req.VM, ErrTaken, u.name)
			}
			if u.name == req.Iface && v.addr == addr {
				return fmt.Errorf("attach: MAC %s VLAN %d on %s: %w by VM %s: detach that, or give this VM another address", req.MAC, req.VLAN, u.name, ErrTaken, v.req.VM)
			}
		}
	}
	for name, list := range c.waiting {
		for _, w := range list {
			if w.vm.Name == req.VM && !w.trying {
				return fmt.Errorf("attach: VM %s: %w: it waits for interface %s: 'rscctl detach %s --vm %s' first", req.VM, ErrTaken, name, name, req.VM)
			}
		}
	}
	return nil
}
