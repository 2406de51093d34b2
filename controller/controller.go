package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/hostchange"
	"github.com/rscctl/rscctl/controller/metrics"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/state"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

// Options are the places one controller owns. Two controllers with different places run side by side.
type Options struct {
	State   string       // directory of the state file and its lock, created if missing
	Socket  string       // path of the control socket
	BPFFS   string       // directory of the pinned flow maps
	Logger  *slog.Logger // never nil
	Version string       // shown by status
	Flows   int          // of each VM that are counted at a time, at most bpf.MaxFlowEntries; 0: bpf.DefaultFlowEntries
	Metrics string       // address that Prometheus scrapes, see metrics.Listen; "": none
	Sizes   Sizes        // of the queues that it opens; of a queue that it goes on with, of its flow table

	CPUs     []int         // of the workers, one each as far as they go; none: the scheduler chooses. See ParseCPUs
	BusyPoll time.Duration // how long a worker polls on after it had something to do; 0: it sleeps at once

	SocketGroup   string        // group of the control socket, a name or a number; "": the process'
	GroupMayWrite bool          // members of that group may change things, not only look
	Service       bool          // a service manager runs it
	Watchdog      time.Duration // how often that one wants to hear of it; 0: not at all, or as the process before was told
	// Store outlives this process: what a next one needs to go on after a crash is kept there. nil: a crash ends everything.
	Store *fdstore.Store
	// Again tells, when Run's context has ended, whether a next process will go on with what is in Store; nil: none will.
	Again func() bool
}

const (
	flowsPinName = "flows"
	healthEvery  = time.Second
	leastLook    = 50 * time.Millisecond // between two looks at a VM whose bridge forgets its senders soon
)

// Controller is one running controller. Its methods are safe for concurrent use.
type Controller struct {
	opt      Options
	log      *slog.Logger
	state    *state.Dir
	listener *unixsock.Listener
	scrapes  net.Listener // nil without Options.Metrics
	watcher  *netdev.Watcher
	rules    *netdev.RuleReader
	host     netdev.Kept // by which the looks ask; guarded by mu
	kinds    []kindOf
	place    *placement       // of the workers
	memory   *guestmem.Budget // of all guests' memory that is mapped
	flows    *bpf.Flows
	flowsPin string   // "" when not pinned; flows is nil between the last detach and the next attach
	pinsLock *os.File // while flows is pinned
	started  time.Time

	trouble  chan struct{} // a worker's feed has ended
	replaced chan struct{} // closed when another process has taken over: nothing here is this one's any more
	serving  chan struct{} // closed when the state is restored
	pulses   pulses

	mu         sync.Mutex
	tags       int       // given to uplinks and VMs
	survivor   *survivor // nil without Options.Store
	stirred    uint64    // what the workers had moved when it was last written
	rows       *bpf.FlowSpec
	ahead      *ahead         // what was built, while a hand-over is under way
	movedAt    int64          // when what was unpacked was taken up again, as monotonic says
	shown      map[*heir]bool // those that build of a first parcel
	uplinks    map[string]*uplink
	heard      map[*listening]bool // traces and captures under way
	deaf       string              // why the control socket could not be made anew, as it was logged
	heardLimit vhost.LogLimit
	waiting    map[string][]*waitingVM // by interface; VMs of the state that are not attached now
	retries    retries                 // when those are tried next
	touched    bool                    // the attach in progress has begun to change the host
	restored   bool                    // the state file was read: from now on ours is the truth
	defaults   *api.Policy             // of VMs of which attach says nothing else; nil: api.BuiltinPolicy
	unsaved    error                   // why the state file is behind; nil when it is not
	warnings   []string
}

// New checks the places, takes the state's lock and listens on the control socket. It changes no interface.
func New(opt Options) (*Controller, error) {
	c := newController(opt)
	var err error
	if c.state, err = openState(opt.State); err != nil {
		return nil, err
	}
	if c.listener, err = listenControl(opt.Socket, opt.SocketGroup); err != nil {
		_ = c.state.Close()
		return nil, err
	}
	if opt.Metrics != "" {
		c.scrapes, err = metrics.Listen(opt.Metrics)
	}
	if err == nil {
		c.watcher, err = netdev.NewWatcher()
	}
	if err == nil {
		err = c.openFlows()
	}
	if err == nil {
		err = c.survive(1)
	}
	if err != nil {
		c.closePlaces()
		return nil, err
	}
	return c, nil
}

// newController is one without its places.
func newController(opt Options) *Controller {
	c := &Controller{opt: opt, log: opt.Logger, started: time.Now(), trouble: make(chan struct{}, 1), serving: make(chan struct{}), replaced: make(chan struct{}),
		uplinks: map[string]*uplink{}, shown: map[*heir]bool{}, heard: map[*listening]bool{}, waiting: map[string][]*waitingVM{}, retries: retries{}, rules: netdev.NewRuleReader(),
		kinds: builtinKinds(), place: newPlacement(opt.CPUs), memory: guestmem.NewBudget()}
	c.rules.Ours = c.hostPrograms
	return c
}

// Watchdog is how often the service manager wants to hear of this controller; 0: not at all.
func (c *Controller) Watchdog() time.Duration { return c.opt.Watchdog }

// closePlaces frees what New took.
func (c *Controller) closePlaces() {
	if c.watcher != nil {
		c.watcher.Close()
	}
	_ = c.host.Close()
	if c.scrapes != nil {
		_ = c.scrapes.Close()
	}
	c.listener.Close() // removes the socket file as well
	unlockPins(c.pinsLock)
	_ = c.state.Close()
}

// openFlows makes or adopts the pinned flow maps. Without a bpf filesystem it goes on unpinned and says how to have one:
// the operator decides what is mounted.
func (c *Controller) openFlows() (err error) {
	if c.pinsLock, err = lockPins(c.opt.BPFFS); err != nil {
		return err
	}
	if err = c.loadFlows(); err != nil {
		unlockPins(c.pinsLock)
		c.pinsLock = nil
	}
	return err
}

// flowRows is what a flow map has to be, which is found out once.
func (c *Controller) flowRows() (_ *bpf.FlowSpec, err error) {
	if c.rows == nil {
		c.rows, err = bpf.NewFlowSpec(c.opt.Flows)
	}
	return c.rows, err
}

// loadFlows is openFlows once the pins are this controller's.
func (c *Controller) loadFlows() error {
	pin := filepath.Join(c.opt.BPFFS, flowsPinName)
	rows, err := c.flowRows()
	if err != nil {
		return err
	}
	m, pinned, err := bpf.OpenFlows(pin, rows)
	if err != nil {
		return err
	}
	c.flows = m
	if pinned {
		c.flowsPin = pin
	} else {
		c.warnings = append(c.warnings[:0], fmt.Sprintf("flow counters will not survive a restart: %s is not on a bpf filesystem (mount one with 'mount -t bpf bpf /sys/fs/bpf', or choose one with --bpffs)", c.opt.BPFFS))
	}
	return nil
}

// ErrReplaced is how Run ends when another process has taken over: everything is that one's.
var ErrReplaced = errors.New("replaced by another controller")

// Run restores the state, serves until ctx ends and then leaves the host as it found it, keeping the state and the
// pinned flow maps. ErrReplaced: the caller has to end the process.
func (c *Controller) Run(ctx context.Context) error {
	for _, w := range c.warnings {
		c.log.Warn(w)
	}
	var err error
	if !c.restored { // by another process
		err = c.restore()
	}
	if err == nil {
		c.log.Info("ready", "socket", c.opt.Socket, "state", c.opt.State)
		close(c.serving)
		working := context.WithoutCancel(ctx)
		watching, stop := context.WithCancel(working)
		var wg sync.WaitGroup
		// What listens ends when Run ends by itself, and not when an heir or the next process has it: its end would remove the file.
		listening, deafen := context.WithCancelCause(working)
		serve := func(l *unixsock.Listener) {
			wg.Go(func() {
				if err := c.serve(listening, l); err != nil {
					deafen(err)
				}
			})
		}
		serve(c.listener)
		wg.Go(func() { c.watch(watching, serve) })
		if c.scrapes != nil {
			c.log.Info("metrics", "address", c.scrapes.Addr().String())
			wg.Go(func() { c.serveMetrics(watching) })
		}
		ended := make(chan error, 1)
		go func() {
			var err error
			select {
			case <-ctx.Done():
				if c.opt.Again != nil && c.opt.Again() && c.leave() {
					ended <- ErrReplaced
					return
				}
				deafen(nil)
			case <-listening.Done():
				err = context.Cause(listening)
			}
			stop()
			wg.Wait()
			ended <- errors.Join(err, c.shutdown())
		}()
		select {
		case err = <-ended:
			stop()
			return err
		case <-c.replaced: // also while it ends: the lock, which the end needs, is held for good
			stop()
			return ErrReplaced
		}
	}
	return errors.Join(err, c.shutdown())
}

// Serving is closed when Run has restored the state and answers the control socket. It stays open where Run fails before.
func (c *Controller) Serving() <-chan struct{} { return c.serving }

// shutdown takes everything off the host but what the next run needs: the state and the pinned flow maps.
func (c *Controller) shutdown() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	saved := c.snapshotState()
	for _, u := range c.uplinks {
		_, err := c.closeUplink(u)
		errs = append(errs, err)
	}
	if c.restored {
		errs = append(errs, c.state.Save(saved))
	}
	if c.flows != nil {
		errs = append(errs, c.flows.Close())
	}
	if c.survivor != nil {
		errs = append(errs, c.survivor.forget())
	}
	c.closePlaces()
	return errors.Join(errs...)
}

// dropVM takes a VM off its uplink. The caller holds mu.
func (c *Controller) dropVM(a *attachment) error {
	if index := a.kind.watched(); index != 0 {
		c.watcher.Remove(index)
	}
	return a.up.removeVM(a)
}

// closeUplink takes an interface back to what it was: ports, workers, program, offloads. The caller holds mu.
func (c *Controller) closeUplink(u *uplink) (restored []string, err error) {
	c.withdraw()
	c.pulses.remove(u) // before its descriptors are closed: they wake the workers
	var errs []error
	for _, v := range u.vms {
		errs = append(errs, c.dropVM(v))
	}
	errs = append(errs, u.close())
	errs = append(errs, c.putBack(u.changes)...)
	for _, ch := range u.changes {
		restored = append(restored, hostchange.UndoneText(ch))
	}
	if u.foreign != nil {
		restored = append(restored, fmt.Sprintf("sockets of %s removed from the map at %s; its XDP program was left alone", u.name, u.foreign.path))
	} else {
		restored = append(restored, fmt.Sprintf("XDP program and sockets removed from %s", u.name))
	}
	c.unwatchUplink(u)
	delete(c.uplinks, u.name)
	return restored, errors.Join(errs...)
}
