package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// StageOptions are what a Stage is made of. Executable has to be a program whose ChildVerb calls ChildWith.
type StageOptions struct {
	IPv6       bool
	Host       any           // not nil: the way is Extra's Host and NIC instead of the controller and vhost-user, and this is the argument of Host
	Round      time.Duration // the measured time of one setting
	BusyPoll   time.Duration // of the controller; 0: its workers sleep at once
	Tracked    int           // flows of the VM that the controller counts at a time; 0: as many as it does by itself
	Wire       [2]string     // two NICs of the calling thread's namespace with a wire between, the sender's and the uplink, which are given back; "": a veth pair
	Executable string        // "" for os.Executable()
	Version    string
	Stderr     io.Writer // progress lines; nil: none
}

// Stage is the demo's topology for a program that measures more of it than the demo does. One goroutine uses it.
type Stage struct {
	d      *demo
	ctx    context.Context
	cancel context.CancelCauseFunc

	xdp, xsk string
}

// OpenStage builds the topology up to a guest that listens. It ends with ctx, whose end every method then returns. Needs root.
func OpenStage(ctx context.Context, o StageOptions) (_ *Stage, err error) {
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	if err := preflight(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	d := &demo{opt: Options{IPv6: o.IPv6, Stderr: o.Stderr, Version: o.Version, Round: o.Round, Executable: o.Executable}, busyPoll: o.BusyPoll, tracked: o.Tracked, wire: o.Wire, fail: cancel, seed: rand.Uint64()}
	s := &Stage{d: d, ctx: ctx, cancel: cancel}
	defer func() {
		if err != nil {
			err = d.cause(ctx, err)
			_ = s.Close()
		}
	}()
	if o.Host != nil {
		if d.host, err = json.Marshal(o.Host); err != nil {
			return nil, fmt.Errorf("demo: host: %w", err)
		}
	}
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	if d.client != nil {
		if s.xdp, s.xsk, err = d.waitForPort(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Round measures one setting.
func (s *Stage) Round(set Setting) (Mode, error) {
	m, err := s.d.round(s.ctx, set)
	if err != nil {
		return Mode{}, s.d.cause(s.ctx, err)
	}
	return m, nil
}

// GuestMAC is the VM's address, for frames that the sender's process builds itself. They leave by Wire.
func (s *Stage) GuestMAC() net.HardwareAddr { return guestMAC }

// Wire is the name of the sender's end of the wire, in its namespace.
func (s *Stage) Wire() string {
	if s.d.loan != nil {
		return s.d.wire[0]
	}
	return wireName
}

// Modes are those of XDP and AF_XDP on the controller's uplink, as `rscctl status` has them; "" with another way.
func (s *Stage) Modes() (xdp, xsk string) { return s.xdp, s.xsk }

// Apply changes the setting without measuring it.
func (s *Stage) Apply(set Setting) error { return s.d.apply(s.ctx, set) }

// Idle is what the controller's process costs while nothing comes: processor time, and times that a thread of it woke.
func (s *Stage) Idle(d time.Duration) (cpu time.Duration, wakeups uint64, err error) {
	var at [2]*snapshot
	for i := range at {
		r, err := s.d.control.ask(s.ctx, request{Op: "snapshot"})
		if err != nil {
			return 0, 0, err
		}
		at[i] = r.Snap
		if i == 0 {
			if err := pause(s.ctx, d); err != nil {
				return 0, 0, err
			}
		}
	}
	return at[1].CPU - at[0].CPU, at[1].Sleeps - at[0].Sleeps, nil
}

// Stream lets data flow to the guest over connections of a setting until the function that it returns is called.
func (s *Stage) Stream(set Setting) (stop func() error, err error) {
	t := transferPlan{from: s.d.sender, to: s.d.guest, address: s.d.guestAddress, sum: sumCRC, flows: set.flows(), pace: set.pace()}
	if err := s.d.begin(s.ctx, t); err != nil {
		return nil, err
	}
	return func() error {
		_, err := s.d.finish(s.ctx, t)
		return err
	}, nil
}

// Sender asks the sender's process for an operation of Extra's, Guest the guest's. result may be nil.
func (s *Stage) Sender(op string, arg, result any) error { return s.extra(s.d.sender, op, arg, result) }

// Guest: see Sender.
func (s *Stage) Guest(op string, arg, result any) error { return s.extra(s.d.guest, op, arg, result) }

func (s *Stage) extra(c *child, op string, arg, result any) error {
	b, err := json.Marshal(arg)
	if err != nil {
		return fmt.Errorf("demo: %s: %w", op, err)
	}
	r, err := c.ask(s.ctx, request{Op: op, Arg: b})
	if err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(r.Result, result)
}

// GuestIP is the guest's address.
func (s *Stage) GuestIP() string {
	if s.d.opt.IPv6 {
		return guestIP6
	}
	return guestIP4
}

// ControllerPID is the process of the controller, for a look at its memory.
func (s *Stage) ControllerPID() int { return s.d.control.cmd.Process.Pid }

// Client is the controller's, nil with another way.
func (s *Stage) Client() *api.Client { return s.d.client }

// Close ends the processes, and with them all that they made.
func (s *Stage) Close() error {
	err := s.d.close()
	s.cancel(nil)
	return err
}
