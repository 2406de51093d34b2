package main

import (
	"fmt"
	"io"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/observe"
)

const maxObserveSeconds = 3600

func observeCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "observe",
		Usage:     "tell whether this host needs rscctl: what the kernel merges for each VM today",
		ArgsUsage: "[IFACE...]",
		UsageText: "rscctl observe [IFACE...|--all] [--seconds N] [-o table|json]",
		Description: `Counts the TCP frames that the kernel gives to each VM on a tap, for some seconds, and says what merging would add. Needs root
and no controller, and changes nothing that stays: run it while the VMs receive. Without IFACE: every tap that a VM has open. An
IFACE that is no tap is counted where it receives. What was counted when it is interrupted is printed.

The figures are of bulk TCP: frames of several segments, or of one with at least 1,000 bytes of payload. IN 22+ is the share of its
bytes in frames of 22 segments and more. docs/observe.md says what the estimate rests on.`,
		Flags: []cli.Flag{
			boolFlag("all", "every tap that a VM has open, and the uplinks of their bridges"),
			&cli.StringFlag{Name: "seconds", Usage: "count for `N` seconds, 1 to 3600", Value: "10"},
			outputFlag(),
		},
		Action: func(c *cli.Context) error { return observeHost(c, s) },
	}
}

func observeHost(c *cli.Context, s streams) error {
	names, err := positionals(c, 0, 1<<16, "[IFACE...]")
	if err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	if c.Bool("all") && len(names) > 0 {
		return usagef("observe: --all and %s: name interfaces or say --all, not both", names[0])
	}
	n, err := strconv.Atoi(c.String("seconds"))
	if err != nil || n < 1 || n > maxObserveSeconds {
		return usagef("observe: --seconds %s: not a number of seconds: say 1 to %d", c.String("seconds"), maxObserveSeconds)
	}
	// A terminal that goes away ends it as Ctrl-C does: before Linux 6.6 a dead process would leave its filters.
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGHUP)
	defer stop()
	rep, err := observe.Run(ctx, observe.Options{Interfaces: names, Uplinks: c.Bool("all"), Duration: time.Duration(n) * time.Second})
	if err != nil {
		return on("observe", err)
	}
	if asJSON {
		return printJSON(s.out, rep)
	}
	return printObserved(s.out, rep)
}

func printObserved(w io.Writer, rep *observe.Report) error {
	p := newPrinter(w)
	p.row("IFACE", "KIND", "RATE", "FRAMES/S", "SEGMENTS/FRAME", "BYTES/FRAME", "IN 22+")
	for _, i := range rep.Interfaces {
		if i.Error != "" {
			continue
		}
		segments, bytes, share := "-", "-", "-"
		if i.SegmentsPerFrame > 0 {
			segments = strconv.FormatFloat(i.SegmentsPerFrame, 'f', 1, 64)
			bytes, share = grouped(uint64(i.BytesPerFrame)), fmt.Sprintf("%.0f%%", 100*i.Share22)
		}
		p.row(i.Name, string(i.Kind), bitrate(i.BitsPerSec), grouped(uint64(i.FramesPerSec+0.5)), segments, bytes, share)
	}
	p.line("")
	for _, i := range rep.Interfaces {
		if i.Error != "" {
			p.line("not counted: %s", i.Error)
			continue
		}
		p.line("%s: %s", i.Name, i.Verdict.Text)
		if i.Dropped > 0 {
			p.line("%s: %s frames were dropped because its queue was full", i.Name, grouped(i.Dropped))
		}
	}
	return p.flush()
}
