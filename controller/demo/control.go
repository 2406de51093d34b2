package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller"
	"github.com/rscctl/rscctl/controller/netns"
)

// control runs the real controller in this process, and nothing else. The parent drives it over its control socket as
// an operator would; the requests here only start it and read the process's CPU time.
type control struct {
	ctx     context.Context
	version string
	born    time.Time
	dir     string
	cancel  context.CancelFunc
	ended   chan error
	extra   Extra
	quota   *quota // nil: the guest was never held
	uplink  string
	loan    *loan // nil: the uplink is a veth's end
	napi    [len(napiFiles)]string
}

func newControl(ctx context.Context, version string, x Extra) *control {
	return &control{ctx: ctx, version: version, born: time.Now(), extra: x}
}

func (c *control) do(q *request) (*reply, error) {
	switch q.Op {
	case "network":
		if err := nameNamespace(senderNamespace, q.PeerPID); err != nil {
			return nil, err
		}
		if q.Loan != nil {
			return nil, c.borrow(q.Loan)
		}
		// The uplink is the end of the wire that the sender made.
		c.uplink = uplinkName
		return nil, bringUp(c.uplink, "", 0, 0)
	case "run":
		return nil, c.run(q)
	case "snapshot":
		cpu := cpuTime()
		if c.extra.HostPID != nil {
			cpu += processTime(c.extra.HostPID())
		}
		return &reply{Snap: &snapshot{Clock: time.Since(c.born), CPU: cpu, Sleeps: sleeps()}}, nil
	case "host":
		return nil, c.extra.Host(c.uplink, q.Arg)
	case "quota":
		return nil, c.hold(q.GuestPID, q.Processors)
	case "stop":
		return nil, c.stop()
	}
	return nil, fmt.Errorf("%s: %w", q.Op, errOp)
}

// borrow takes the wire that the parent has borrowed.
func (c *control) borrow(l *loan) (err error) {
	if err := l.adopt(); err != nil {
		return err
	}
	c.loan, c.uplink = l, l.NICs[1].Name
	if err := l.take(); err != nil {
		return err
	}
	if c.napi, err = napi(c.uplink); err != nil {
		return err
	}
	return bringUp(c.uplink, "", 0, 0)
}

// giveBack ends the loan, if there is one.
func (c *control) giveBack() error {
	if c.loan == nil {
		return nil
	}
	return errors.Join(setNAPI(c.uplink, c.napi), c.loan.giveBack())
}

// senderNamespace is the name under which the controller finds the other end of its wire.
const senderNamespace = "rscdemo-sender"

// nameNamespace gives the network namespace of a process a name, as `ip netns` does, so that the controller can look at
// the offloads of the wire's other end as it would on a host. The folder of names is mounted over for this process
// alone, which has its own mounts: nobody else sees the name and nothing of it outlives the process.
func nameNamespace(name string, pid int) error {
	if err := unix.Mount("tmpfs", netns.Dir, "tmpfs", 0, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("namespace names: mount: %w", err)
	}
	path := filepath.Join(netns.Dir, name)
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		return fmt.Errorf("namespace names: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", pid), path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("namespace names: %s: %w", name, err)
	}
	return nil
}

// run starts the controller and waits until its socket answers. The folder of the pins is an ordinary one, so nothing is
// pinned: the demo leaves nothing and needs no bpf file system.
func (c *control) run(q *request) error {
	c.dir = q.State
	ctl, err := controller.New(controller.Options{
		State: filepath.Join(q.State, "state"), Socket: q.Socket, BPFFS: filepath.Join(q.State, "pins"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Version: c.version,
		BusyPoll: q.BusyPoll, Flows: q.Tracked,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.cancel = cancel
	c.ended = make(chan error, 1)
	go func() {
		err := ctl.Run(ctx)
		c.ended <- err
		if ctx.Err() == nil {
			// It ended by itself: the parent sees this process end and shows the last line.
			fmt.Fprintln(os.Stderr, "controller ended:", err)
			os.Exit(1)
		}
	}()
	return waitForSocket(q.Socket)
}

// waitForSocket waits until something accepts on a Unix socket.
func waitForSocket(path string) error {
	var err error
	for range 500 {
		var conn net.Conn
		if conn, err = net.Dial("unix", path); err == nil {
			return conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("control socket: %w", err)
}

// close stops the controller and gives back what is the host's.
func (c *control) close() error {
	defer c.quota.close()
	return errors.Join(c.stop(), c.giveBack())
}

// stop stops the controller the way a service manager would and removes its folder. The parent does the latter too; it
// is done here for the case that the parent was killed.
func (c *control) stop() error {
	if c.cancel == nil {
		return nil
	}
	c.cancel()
	c.cancel = nil
	var err error
	select {
	case err = <-c.ended:
	case <-time.After(stopTimeout - time.Second):
		err = errors.New("controller: did not stop in time")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}
