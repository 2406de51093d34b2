package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller"
	"github.com/rscctl/rscctl/controller/fdstore"
	"github.com/rscctl/rscctl/controller/metrics"
)

const (
	backgroundFlag = "background"
	maxBusyPoll    = 10 * time.Millisecond // longer would be a CPU given away
)

func runCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the controller in the foreground",
		Description: `Attaches what the state directory remembers and what --config describes, then serves the control socket until interrupted.
A clean stop takes programs, links and sockets away and keeps the state. Several controllers run side by side when state, socket and bpffs
differ. SIGHUP makes it look at everything anew, read --config again, and try VMs that wait. Needs root; what else is missing is said at
once, and by 'rscctl doctor' beforehand. Capabilities that nothing here needs are given up at start.`,
		Flags: append(logFlags(),
			stateFlag(), socketFlag(), bpffsFlag(),
			&cli.StringFlag{Name: "config", Usage: "put the VMs in force that `FILE` describes, as apply does; VMs that it does not name stay", DefaultText: "none"},
			&cli.StringFlag{Name: "socket-group", Usage: "`GROUP` of the control socket, whose members may look", DefaultText: "root's"},
			boolFlag("group-may-write", "members of the socket's group may also attach, detach and set policies: each of them can then do on this host what rscctl can"),
			boolFlag("replace", "take over from the controller that runs on these places: no VM and no front-end notices; if it cannot be, that one goes on"),
			&cli.IntFlag{Name: "flows", Usage: fmt.Sprintf("count `N` flows of each VM at a time, 1 to %d, at 240 bytes of kernel memory each; flows that are counted are forgotten when N is another",
				bpf.MaxFlowEntries), Value: bpf.DefaultFlowEntries, EnvVars: []string{"RSCCTL_FLOWS"}},
			&cli.BoolFlag{Name: backgroundFlag, Hidden: true}, // for the unit's ExecReload
			&cli.StringFlag{Name: "cpus", Usage: "bind each worker to a CPU of `LIST`, as in 2,4-6; they share one when there are more workers", DefaultText: "the scheduler chooses"},
			&cli.DurationFlag{Name: "busy-poll", Usage: "a worker polls its NIC on for `TIME` after it had something to do, at most 10ms, and sleeps then: less delay for more CPU", DefaultText: "it sleeps at once"},
			&cli.IntFlag{Name: "chunks", Usage: "chunks of memory for frames of each receive queue, `N` of 8192 to 262144, 2 KiB each (4 for a large MTU); the more, the more flows merge at a time", DefaultText: "32768, or less where that is more than a 256th of the machine's memory"},
			&cli.IntFlag{Name: "slots", Usage: "flows of each receive queue that something is held of at a time, `N` of 64 to 65536", DefaultText: "4096"},
			&cli.StringFlag{Name: "metrics", Usage: "let Prometheus scrape `ADDRESS`, [HOST]:PORT or PORT; without a host only this machine can", DefaultText: "not at all"},
		),
		Action: func(c *cli.Context) error { return runController(c, s) },
	}
}

func runController(c *cli.Context, s streams) (err error) {
	defer func() {
		if err != nil {
			sayEnd(exitCode(err))
		}
	}()
	if _, err := positionals(c, 0, 0, ""); err != nil {
		return err
	}
	if c.IsSet("metrics") {
		if _, err := metrics.Address(c.String("metrics")); err != nil {
			return usagef("run: --metrics %s: %v", c.String("metrics"), metrics.ErrAddress)
		}
	}
	sizes := controller.Sizes{Chunks: c.Int("chunks"), Slots: c.Int("slots")}
	if err := sizes.Check(); err != nil {
		return on("run", err)
	}
	if n := c.Int("flows"); n < 1 || n > bpf.MaxFlowEntries {
		return usagef("run: --flows %d: use 1 to %d", n, bpf.MaxFlowEntries)
	}
	if c.String("config") == "-" {
		return usagef("run: --config -: name a file: it is read again at each reload")
	}
	var cpus []int
	if c.IsSet("cpus") {
		if cpus, err = controller.ParseCPUs(c.String("cpus")); err != nil {
			return usagef("run: --cpus %s: %v", c.String("cpus"), err)
		}
	}
	if d := c.Duration("busy-poll"); d < 0 || d > maxBusyPoll {
		return usagef("run: --busy-poll %s: out of range: say 0 to %s", d, maxBusyPoll)
	}
	log, err := newLogger(c, s.err)
	if err != nil {
		return err
	}
	if c.Bool(backgroundFlag) {
		if os.Getenv("NOTIFY_SOCKET") == "" {
			return usagef("run: --%s is for a service manager", backgroundFlag)
		}
		return on("run", background())
	}
	if !fdstore.InKeeper() { // which has, for all that it starts
		if err := dropPrivileges(); err != nil {
			log.Warn("capabilities: not all given up", "err", err)
		}
	}
	if under, code, err := keepAlive(c, log); under {
		return exitWith(code, on("run", err))
	}
	files, err := fdstore.Inherited()
	if err != nil {
		log.Error("nothing is gone on with", "err", err)
	}
	if len(files) == 0 { // or the process before could, and VMs wait
		if err := canRun(c); err != nil {
			return on("run", err)
		}
	}
	store, err := fdstore.Open()
	if err != nil {
		return on("run", err)
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // before there is anything to clean up
	defer signal.Stop(hangups)
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog", "err", err)
	}
	ctl, err := begin(c, log, files, controller.Options{
		State:   c.String("state"),
		Socket:  c.String("socket"),
		BPFFS:   c.String("bpffs"),
		Logger:  log,
		Version: version(),
		Metrics: c.String("metrics"),
		CPUs:    cpus, BusyPoll: c.Duration("busy-poll"),
		Sizes: sizes, Flows: c.Int("flows"),

		SocketGroup: c.String("socket-group"), GroupMayWrite: c.Bool("group-may-write"),
		Service:  store != nil && !fdstore.InKeeper(),
		Watchdog: watchdog,
		Store:    store,
		Again:    func() bool { return store != nil && !fdstore.InKeeper() && restarting() },
	})
	if err != nil {
		return on("run", err)
	}
	// The controller stops when nobody attaches any more: what is attached behind its back would stay.
	serving, stop := context.WithCancel(context.WithoutCancel(c.Context))
	attendant := &service{ctl: ctl, store: store, log: log, config: c.String("config"), hangups: hangups}
	go func() {
		attendant.attend(c.Context)
		stop()
	}()
	if err = ctl.Run(serving); errors.Is(err, controller.ErrReplaced) {
		return nil
	}
	return on("run", err)
}
