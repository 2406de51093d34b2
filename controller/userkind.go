package controller

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

const (
	maxPairs    = 8
	defaultMode = 0o660
	leastMTU    = 68 // RFC 791
	mostMTU     = 65535
)

// userKind is a VM on a vhost-user socket: we fill its guest's buffers. Its hooks run on the port's control goroutine.
type userKind struct {
	cfg   vhost.Config
	owner string                     // the socket's by default, in words; "": it was said, or ours
	mtu   int                        // of the VM; 0: the uplink's
	port  atomic.Pointer[vhost.Port] // nil until the first of open and started
	limit vhost.LogLimit
	told  string    // the last warning that was logged
	keeps *survivor // nil: nothing outlives this process

	built *vhost.Prepared // nil but between build and takeOver
	state vhost.PortState // for takeOver
}

func wantsUser(req *api.AttachRequest) bool { return req.VhostUser != "" }

func newUserKind(req *api.AttachRequest) (kind, error) {
	k := &userKind{cfg: vhost.Config{
		Name: req.VM, Socket: req.VhostUser, Connect: req.Connect, MaxPairs: maxPairs, MaxBuffers: vhost.LinuxBuffers, TxHead: datapath.HeadRoom,
		Mode: defaultMode, UID: -1, GID: -1, AnyMemory: req.AnyMemory,
	}}
	if !filepath.IsAbs(req.VhostUser) || strings.ContainsFunc(req.VhostUser, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return nil, fmt.Errorf("socket %q: %w: name it from / on, in visible characters, such as /run/rscctl/web1.sock", req.VhostUser, ErrUsage)
	}
	if req.MTU != 0 && (req.MTU < leastMTU || req.MTU > mostMTU) {
		return nil, fmt.Errorf("mtu %d: %w: use %d to %d, or none for the interface's", req.MTU, ErrUsage, leastMTU, mostMTU)
	}
	k.mtu = req.MTU
	if req.SocketMode != "" {
		m, err := strconv.ParseUint(req.SocketMode, 8, 12)
		if err != nil || m > 0o777 {
			return nil, fmt.Errorf("socket mode %q: %w: write it octal, like 0660", req.SocketMode, ErrUsage)
		}
		k.cfg.Mode = os.FileMode(m)
	}
	switch {
	case req.SocketOwner != "":
		var err error
		if k.cfg.UID, k.cfg.GID, err = parseOwner(req.SocketOwner); err != nil {
			return nil, err
		}
	case !req.Connect && os.Geteuid() == 0:
		k.owner, k.cfg.UID, k.cfg.GID = libvirtOwner(user.Lookup, user.LookupGroup)
	}
	return k, nil
}

// libvirtOwner is whom libvirt runs QEMU as on this host, which has to connect to the socket: libvirt-qemu:kvm on Debian and Ubuntu,
// qemu:qemu on Fedora and its kin. Without libvirt it is -1, ours.
func libvirtOwner(lookup func(string) (*user.User, error), lookupGroup func(string) (*user.Group, error)) (words string, uid, gid int) {
	for _, o := range []struct{ user, group string }{{"libvirt-qemu", "kvm"}, {"qemu", "qemu"}} {
		u, err := lookup(o.user)
		if err != nil {
			continue
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			continue
		}
		g, err := lookupGroup(o.group)
		if err != nil {
			return o.user, uid, -1
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return o.user, uid, -1
		}
		return o.user + ":" + o.group, uid, gid
	}
	return "", -1, -1
}

func (k *userKind) plan(c *Controller, a *attachment, uplink *netdev.Facts, _ bool) (changes, warnings []string, err error) {
	k.prepare(c, uplink)
	if err := checkFolder(k.cfg, c.opt.State, c.opt.BPFFS); err != nil { // before anything of the host is touched
		return nil, nil, fmt.Errorf("attach: %w", err)
	}
	if k.owner != "" {
		changes = append(changes, fmt.Sprintf("make socket %s for %s, whom libvirt runs QEMU as (--socket-owner says otherwise)", k.cfg.Socket, k.owner))
	}
	if k.mtu > uplink.MTU {
		warnings = append(warnings, fmt.Sprintf("the VM's MTU is %d, that of %s is %d: longer frames are refused", k.mtu, uplink.Name, uplink.MTU))
	}
	return changes, warnings, nil
}

// withRemedy adds what to do about a socket that cannot be had. nil stays nil.
func withRemedy(err error) error {
	for _, r := range []struct {
		of   error
		text string
	}{
		{vhost.ErrNoFolder, "make it, as root, or name a socket in another one such as /run/rscctl"},
		{vhost.ErrNotSocket, "remove it, or name another path"},
		{vhost.ErrSocketInUse, "end who does, name another path, or say --connect if that is the VM's QEMU"},
		{vhost.ErrPathTooLong, "name a shorter one, for example in /run/rscctl"},
		{vhost.ErrConfig, "name the path of a file"},
	} {
		if errors.Is(err, r.of) {
			return fmt.Errorf("%w: %s", err, r.text)
		}
	}
	return err
}

func (k *userKind) open(a *attachment) error {
	if err := k.wire(a); err != nil {
		return err
	}
	port, err := vhost.NewPort(k.cfg)
	if errno := syscall.Errno(0); errors.As(err, &errno) { // what Check of vhost has no word for: a folder of /proc, a full disk
		return fmt.Errorf("attach: %w: make room there, or name a socket in another folder such as /run/rscctl", err)
	} else if err != nil {
		return err
	}
	return k.steer(a, port)
}

// steer sends the VM's frames to the workers.
func (k *userKind) steer(a *attachment, port *vhost.Port) error {
	k.port.Store(port)
	for _, addr := range a.addrs() {
		if err := a.up.prog.SetPort(keyOf(addr), steered(a)); err != nil {
			return err
		}
	}
	return a.up.setSteering(a.idx, true)
}

// wire tells the port whom to tell of what happens to it.
func (k *userKind) wire(a *attachment) (err error) {
	if k.keeps != nil {
		if k.cfg.Keep, err = k.keeps.port(a.tag); err != nil {
			return err
		}
	}
	k.cfg.Hooks = vhost.Hooks{
		Started:     func(p *vhost.Port) { k.started(a, p) },
		BeforePause: func(*vhost.Port) { k.stopWorkers(a, "pause", (*queue).PausePort) },
		BeforeStop:  func(*vhost.Port) { k.beforeStop(a) },
		Stopped:     func(_ *vhost.Port, reason error) { k.stopped(a, reason) },
	}
	k.cfg.Logf = func(format string, args ...any) { a.log.Warn(fmt.Sprintf(format, args...)) }
	k.cfg.Notef = func(format string, args ...any) { a.log.Info(fmt.Sprintf(format, args...)) }
	return nil
}

func (k *userKind) close(a *attachment) error {
	p := k.port.Load()
	if p == nil {
		return nil
	}
	err := p.Close()
	if errors.Is(err, vhost.ErrStuck) { // it ends by itself, and keeps what is still in use until then
		a.log.Error("port: close", "err", err)
		return nil
	}
	return err
}

func (k *userKind) enforce(a *attachment, p api.Policy) error { return a.setRules(p) }

func (k *userKind) uplinkMTU(mtu int) { k.port.Load().SetMTU(k.mostMTU(mtu)) }

// mostMTU is what a front-end may ask for on an uplink of that MTU.
func (k *userKind) mostMTU(uplink int) int {
	if k.mtu > 0 {
		return min(k.mtu, uplink)
	}
	return uplink
}

// check says once what is wrong with a guest that runs.
func (k *userKind) check(a *attachment, _ *look) error {
	s := k.port.Load().State()
	say := s.Warning
	if s.Name == vhost.StateStuck {
		say = s.Reason
	}
	if say != k.told {
		if k.told = say; say != "" {
			a.log.Warn("port", "state", s.Name, "warning", say)
		}
	}
	return nil
}

// started is called when the guest's rings run: every worker gets its queues and the rules of the negotiated features.
func (k *userKind) started(a *attachment, p *vhost.Port) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k.port.Store(p) // the first start can come before NewPort has returned
	again := a.running
	a.running = true
	cfg := portConfig(a.policy, p.Features())
	pairs := max(1, p.Pairs())
	var errs []error
	for n, q := range a.up.queues {
		// The NIC keeps a flow on one of its queues, and a worker on one pair, so a flow stays on one pair. TX virtqueue i is read by
		// worker i modulo their number.
		var sources []datapath.Source
		for i := n; i < pairs; i += len(a.up.queues) {
			sources = append(sources, p.TX(i))
		}
		errs = append(errs, q.StartPort(a.idx, datapath.NewUserGuest(p.RX(n%pairs), q.sock, q.Wake), sources, cfg))
	}
	err := errors.Join(errs...)
	if err != nil {
		a.log.Error("port: start", "err", err)
	}
	if again { // after a pause: nothing that an operator has to know
		return
	}
	if left, ok := k.limit.Allow("started"); ok {
		prof, note := effective(a.policy, p.Features(), true)
		a.log.Info("guest running", "pairs", pairs, "profile", prof, "note", note, "lines_left_out", left)
	}
}

// beforeStop is called before the rings stop: what is held is delivered, the queues are forgotten.
func (k *userKind) beforeStop(a *attachment) {
	k.stopWorkers(a, "stop", (*queue).StopPort)
	a.mu.Lock()
	a.running = false
	a.mu.Unlock()
}

func (k *userKind) stopWorkers(a *attachment, what string, stop func(*queue, uint32) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.running {
		return
	}
	if err := a.up.each(func(q *queue) error { return stop(q, a.idx) }); err != nil {
		a.log.Error("port: "+what, "err", err)
	}
}

func (k *userKind) stopped(a *attachment, reason error) {
	if left, ok := k.limit.Allow("stopped"); !ok {
		return
	} else if reason != nil && !errors.Is(reason, vhost.ErrDisconnected) {
		a.log.Warn("port stopped", "reason", reason, "lines_left_out", left)
	} else {
		a.log.Info("port stopped", "lines_left_out", left)
	}
}

func (k *userKind) features() virtio.Features {
	if p := k.port.Load(); p != nil {
		return p.Features()
	}
	return 0
}

func (k *userKind) bridged() bool           { return false }
func (k *userKind) claim() string           { return "socket " + k.cfg.Socket }
func (k *userKind) watched() int            { return 0 }
func (k *userKind) restless() time.Duration { return 0 }
func (k *userKind) feed() api.Feed          { return api.FeedVhostUser }
func (k *userKind) to() string              { return k.cfg.Socket }

func (k *userKind) describe(a *attachment, vm *report.VM) error {
	port := k.port.Load()
	s, p := port.State(), &vm.Port
	p.Socket, p.Mode = k.cfg.Socket, api.ModeListen
	if k.cfg.Connect {
		p.Mode = api.ModeConnect
	}
	p.State, p.StopReason, p.QueuePairs, p.QueueSize = api.PortState(s.Name), s.Reason, s.Pairs, s.QueueSize
	if s.Warning != "" {
		p.Warnings = append(p.Warnings, s.Warning)
	}
	if _, err := os.Lstat(k.cfg.Socket); errors.Is(err, fs.ErrNotExist) && !k.cfg.Connect {
		p.Warnings = append(p.Warnings, fmt.Sprintf("its socket's file %s is gone, so no front-end can connect: 'rscctl detach %s --vm %s', and attach it again", k.cfg.Socket, a.up.name, api.ShellWord(a.req.VM)))
	}
	c := port.Counters()
	vm.Interrupts, vm.TxDropped, vm.Vhost = c.Calls, c.TxDropped, c.Named()
	return nil
}
