package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netns"
)

// demo is the stage: three processes, the folder with their sockets, and the client of the controller.
type demo struct {
	opt    Options
	fail   context.CancelCauseFunc
	seed   uint64
	dir    string
	client *api.Client

	sender, control, guest      *child
	senderAddress, guestAddress string

	closing atomic.Bool // processes that end now are meant to

	guestGRO  bool            // as set now
	host      json.RawMessage // the argument of another way than the controller's, nil: the controller's
	busyPoll  time.Duration   // of the controller
	tracked   int             // flows that it counts, 0: its default
	wire      [2]string       // NICs to have instead of a veth pair, "": none
	loan      *loan           // of these, nil: none
	quota     float64         // as set now
	segments  int             // as set now
	madeNames bool            // the folder of namespace names is ours
}

var (
	errRoot = errors.New("demo: needs root, for network namespaces, XDP and a tap; run it with sudo")
	errPort = errors.New("the VM's port did not start")
)

// preflight finds out what can be known before anything is made.
func preflight() error {
	if os.Geteuid() != 0 {
		return errRoot
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("demo: /dev/net/tun: %w; load the driver (modprobe tun), or give the container the device", err)
	}
	_ = unix.Close(fd)
	return nil
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// start builds everything up to a running port.
func (d *demo) start(ctx context.Context) (err error) {
	if d.opt.Executable == "" {
		if d.opt.Executable, err = os.Executable(); err != nil {
			return fmt.Errorf("demo: own binary: %w", err)
		}
	}
	if d.wire != [2]string{} {
		if d.loan, err = borrow(d.wire); err != nil {
			return err
		}
	}
	if err := d.makeDir(); err != nil {
		return err
	}
	// The controller gets the milder signal when this process is killed: it then removes the folder as well.
	for _, c := range []struct {
		to    **child
		role  string
		death syscall.Signal
	}{{&d.sender, roleSender, syscall.SIGKILL}, {&d.control, roleController, syscall.SIGTERM}, {&d.guest, roleGuest, syscall.SIGKILL}} {
		if *c.to, err = startChild(d.opt.Executable, c.role, c.death); err != nil {
			return err
		}
		go d.watch(*c.to)
	}
	d.say("sender, controller and guest in namespaces of their own (processes %d, %d, %d)",
		d.sender.cmd.Process.Pid, d.control.cmd.Process.Pid, d.guest.cmd.Process.Pid)
	if err := d.makeWay(ctx); err != nil {
		return err
	}
	if err := d.startGuest(ctx, false); err != nil {
		return err
	}
	if d.host != nil {
		return d.listen(ctx)
	}
	r, err := d.guest.ask(ctx, request{Op: "features"})
	if err != nil {
		return err
	}
	d.say("guest: vhost-user front-end behind a tap; negotiated %v", r.Names)
	return d.listen(ctx)
}

// watch ends the demo when one of its processes does, whatever is being waited for at that moment.
func (d *demo) watch(c *child) {
	<-c.done
	if !d.closing.Load() {
		d.fail(c.failure())
	}
}

// deathNotice is how much later than its sockets a dead process may be noticed.
const deathNotice = 200 * time.Millisecond

// cause tells why something failed: because of a signal or because a process died, if one did, otherwise for itself.
func (d *demo) cause(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(deathNotice):
		return err
	}
}

// makeDir makes the folder of the sockets. Their paths must fit into 107 bytes (unix(7)), which TMPDIR may not grant.
func (d *demo) makeDir() (err error) {
	base := os.TempDir()
	if len(base) > 60 {
		base = "/tmp"
	}
	if d.dir, err = os.MkdirTemp(base, "rscdemo-"); err != nil {
		return fmt.Errorf("demo: folder for sockets: %w", err)
	}
	if err := os.Mkdir(d.path("sys"), 0o700); err != nil {
		return fmt.Errorf("demo: folder for sockets: %w", err)
	}
	// The controller's process mounts over this folder, so it must be there; on a host without `ip netns` it is not.
	if err := os.Mkdir(netns.Dir, 0o755); err == nil {
		d.madeNames = true
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// makeWay makes the wire and what stands at its end: the controller, as a rule.
func (d *demo) makeWay(ctx context.Context) error {
	if err := d.connect(ctx); err != nil {
		return err
	}
	var err error
	if d.host != nil {
		_, err = d.control.ask(ctx, request{Op: "host", Arg: d.host})
	} else {
		err = d.startController(ctx)
	}
	if err == nil && d.loan != nil {
		err = d.loan.carriers(ctx) // who attaches to a NIC may reset it
	}
	return err
}

// connect lays the wire between the sender and the controller. The sender makes a veth pair, or the controller's process takes both NICs of
// a loan, which it also gives back.
func (d *demo) connect(ctx context.Context) error {
	pids := [2]int{d.sender.cmd.Process.Pid, d.control.cmd.Process.Pid}
	order := []struct {
		c *child
		q request
	}{
		{d.sender, request{Op: "network", IPv6: d.opt.IPv6, PeerPID: pids[1], SysFolder: d.path("sys"), NIC: d.wire[0]}},
		{d.control, request{Op: "network", PeerPID: pids[0], Loan: d.loan}},
	}
	if d.loan != nil {
		if err := d.loan.open(pids); err != nil {
			return err
		}
		slices.Reverse(order)
	}
	for _, x := range order {
		if _, err := x.c.ask(ctx, x.q); err != nil {
			return err
		}
	}
	return nil
}

// uplink is the controller's end of the wire.
func (d *demo) uplink() string {
	if d.loan != nil {
		return d.wire[1]
	}
	return uplinkName
}

// startController runs the controller on its end of the wire and attaches the VM as an operator would.
func (d *demo) startController(ctx context.Context) error {
	if _, err := d.control.ask(ctx, request{Op: "run", State: d.dir, Socket: d.path("control.sock"), BusyPoll: d.busyPoll, Tracked: d.tracked}); err != nil {
		return err
	}
	d.client = api.NewClient(d.path("control.sock"))
	off := false
	a, err := d.client.Attach(ctx, api.AttachRequest{
		Iface: d.uplink(), VM: vmName, MAC: guestMAC.String(), VhostUser: d.path("vm.sock"), Policy: api.PolicyPatch{Coalesce: &off},
	})
	if err != nil {
		return fmt.Errorf("demo: attach: %w", err)
	}
	for _, w := range a.Warnings {
		d.say("attach: %s", w)
	}
	return nil
}

// bufferLen is the guest's receive buffer: what Linux's driver settles on under large frames.
const bufferLen = 4096

func (d *demo) startGuest(ctx context.Context, gro bool) error {
	q := request{
		Op: "network", IPv6: d.opt.IPv6, Socket: d.path("vm.sock"), NAPI: gro, BufferLen: bufferLen, SysFolder: d.path("sys"),
	}
	if d.host != nil {
		q.PeerPID = d.control.cmd.Process.Pid
	}
	_, err := d.guest.ask(ctx, q)
	d.guestGRO = gro
	return err
}

func (d *demo) listen(ctx context.Context) error {
	senderIP, guestIP := senderIP4, guestIP4
	if d.opt.IPv6 {
		senderIP, guestIP = senderIP6, guestIP6
	}
	r, err := d.sender.ask(ctx, request{Op: "listen", Address: senderIP})
	if err != nil {
		return err
	}
	d.senderAddress = r.Address
	if r, err = d.guest.ask(ctx, request{Op: "listen", Address: guestIP}); err != nil {
		return err
	}
	d.guestAddress = r.Address
	return nil
}

// portTimeout is how long the rings may take to start, or to start again after a reconnect.
const portTimeout = 5 * time.Second

// waitForPort waits until the VM's port runs and tells the modes of its interface.
func (d *demo) waitForPort(ctx context.Context) (xdp, xsk string, err error) {
	state := ""
	for end := time.Now().Add(portTimeout); time.Now().Before(end); {
		s, err := d.client.Status(ctx, d.uplink())
		if err != nil {
			return "", "", fmt.Errorf("demo: status: %w", err)
		}
		if len(s.Interfaces) == 1 && len(s.Interfaces[0].Ports) == 1 {
			i := s.Interfaces[0]
			if state = string(i.Ports[0].State); state == "running" {
				return string(i.XDPMode), string(i.XSKMode), nil
			}
			state += " " + i.Ports[0].StopReason
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return "", "", err
		}
	}
	return "", "", fmt.Errorf("demo: %w within %v: %s", errPort, portTimeout, state)
}

// apply changes the setting: the guest is made anew if its own GRO is to change, coalescing is switched over the control
// socket while everything runs.
func (d *demo) apply(ctx context.Context, s Setting) error {
	if s.GuestGRO != d.guestGRO {
		if err := d.hold(ctx, 0); err != nil { // it is made anew at full speed
			return err
		}
		if err := d.startGuest(ctx, s.GuestGRO); err != nil {
			return err
		}
		if d.client != nil {
			if _, _, err := d.waitForPort(ctx); err != nil {
				return err
			}
		}
		if err := d.listen(ctx); err != nil {
			return err
		}
	}
	if err := d.hold(ctx, s.Quota); err != nil {
		return err
	}
	if d.client == nil {
		return nil
	}
	patch := api.PolicyPatch{Coalesce: &s.Coalesce}
	if s.MaxSegments != d.segments {
		patch.MaxSegments = &s.MaxSegments
	}
	if _, err := d.client.SetPolicy(ctx, api.PolicyRequest{VM: vmName, Patch: patch}); err != nil {
		return fmt.Errorf("demo: policy: %w", err)
	}
	d.segments = s.MaxSegments
	return nil
}

// hold gives the guest so many processors and no more, 0: what it can get.
func (d *demo) hold(ctx context.Context, processors float64) error {
	if processors == d.quota {
		return nil
	}
	_, err := d.control.ask(ctx, request{Op: "quota", GuestPID: d.guest.cmd.Process.Pid, Processors: processors})
	if err == nil {
		d.quota = processors
	}
	return err
}

// detach takes the VM off and stops the controller in order. Had it to be done by force, close would do that.
func (d *demo) detach(ctx context.Context) error {
	if _, err := d.guest.ask(ctx, request{Op: "stop"}); err != nil {
		return err
	}
	if _, err := d.client.Detach(ctx, api.DetachRequest{Iface: d.uplink()}); err != nil {
		return fmt.Errorf("demo: detach: %w", err)
	}
	if _, err := d.control.ask(ctx, request{Op: "stop"}); err != nil {
		return err
	}
	d.say("detached, controller stopped")
	return nil
}

// close ends the processes, and with them their namespaces, devices and programs, and removes the folder.
func (d *demo) close() error {
	if d.client != nil {
		d.client.Close()
	}
	// The controller leaves in order. Of the other two nothing remains but processes, and they may be deep in a transfer.
	d.closing.Store(true)
	d.control.stop(stopTimeout + giveBackTimeout)
	d.guest.stop(0)
	d.sender.stop(0)
	// Of a controller that could not do so itself:
	sweepQuotas()
	left := d.loan.end()
	if d.madeNames {
		_ = os.Remove(netns.Dir) // somebody may have put a name there
	}
	if d.dir == "" {
		return left
	}
	if err := os.RemoveAll(d.dir); err != nil {
		left = errors.Join(left, fmt.Errorf("demo: clean up: %w", err))
	}
	return left
}
