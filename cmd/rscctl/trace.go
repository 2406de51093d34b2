package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func flowFlag() cli.Flag {
	return &cli.StringFlag{Name: "flow", Usage: "only packets of flow `F`: ADDR, ADDR:PORT, :PORT or [ADDR]:PORT, one end or both with a comma between them", DefaultText: "all"}
}

func traceCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "trace",
		Usage:     "show what is done with a VM's frames as it happens, with the flow and the reason",
		ArgsUsage: "VM",
		Description: `An event a line, until interrupted: seal, a superframe left the flow table; pass, a packet left it alone; drop, a frame was given
up. docs/counters.md explains the reasons. Events that come faster than they are read are lost and counted: the VM
does not wait for them. -o json prints an object a line.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "limit", Usage: "end after `N` events", DefaultText: "none"},
			flowFlag(),
			&cli.StringFlag{Name: "events", Usage: "only these: a `LIST` of seal, pass, drop", DefaultText: "all"},
			outputFlag(), socketFlag(),
		},
		Action: func(c *cli.Context) error { return trace(c, s) },
	}
}

// linger is how long a stream is still read when it is to end: what happened until then is on its way.
const linger = 50 * time.Millisecond

// listenContext ends a moment after ctx, or after the terminal has gone, or a moment after stop.
func listenContext(ctx context.Context) (listening context.Context, stop func()) {
	asked, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	listening, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(asked, func() { time.AfterFunc(linger, end) })
	return listening, stop
}

// errEnough ends a stream that has brought what was asked for.
var errEnough = errors.New("enough")

func trace(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "VM")
	if err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	limit, err := within(c, "limit", 1, 0)
	if err != nil {
		return err
	}
	q := api.TraceQuery{VM: args[0], Flow: c.String("flow"), Events: c.String("events")}
	if err := checkFlow(c); err != nil {
		return err
	}
	if c.IsSet("events") {
		if err := checkEvents(q.Events); err != nil {
			return err
		}
	}
	ctx, stop := listenContext(c.Context)
	defer stop()
	n := 0
	err = client(c).Trace(ctx, q, func(e *api.TraceEvent) error {
		if err := printEvent(s.out, e, asJSON); err != nil {
			return err
		}
		if isFate(e.Event) {
			n++
		}
		if limit > 0 && n == limit {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		return nil
	}
	return ended(err)
}

func isFate(k api.TraceEventKind) bool {
	return slices.Contains(api.TraceFates, k)
}

func checkEvents(list string) error {
	for name := range strings.SplitSeq(list, ",") {
		if !isFate(api.TraceEventKind(name)) {
			return usagef("--events %s: no such event: say some of seal,pass,drop", list)
		}
	}
	return nil
}

func checkFlow(c *cli.Context) error {
	_, err := api.ParseFlowFilter(c.String("flow"))
	if c.IsSet("flow") && c.String("flow") == "" {
		err = usagef("--flow: empty: leave it out for all flows")
	}
	return err
}

// within reads a flag that bounds something: 0 where it is not given, otherwise from least to most; most 0: no end.
func within(c *cli.Context, name string, least, most int) (int, error) {
	if !c.IsSet(name) {
		return 0, nil
	}
	n, err := count(name, c.String(name))
	switch {
	case err != nil:
		return 0, err
	case most == 0 && n < least:
		return 0, usagef("--%s %d: too small: say %d and above", name, n, least)
	case most > 0 && (n < least || n > most):
		return 0, usagef("--%s %d: out of range: say %d to %d", name, n, least, most)
	}
	return n, nil
}

func printEvent(w io.Writer, e *api.TraceEvent, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	var err error
	switch {
	case e.Event == api.TraceBegin:
		_, err = fmt.Fprintf(w, traceRow, "TIME", "WAY", "EVENT", "REASON", "PACKETS", "BYTES", "HELD", "FLOW")
	case e.Event == api.TraceLost:
		_, err = fmt.Fprintf(w, "... %s events lost: they came faster than they were read\n", grouped(e.Count))
	case isFate(e.Event):
		way, held := "in", "-"
		if e.Direction == api.ToWire {
			way = "out"
		}
		if e.HeldNS > 0 {
			held = duration(time.Duration(e.HeldNS))
		}
		_, err = fmt.Fprintf(w, traceRow, time.Unix(0, e.TimeNS).Format("15:04:05.000000"), way, string(e.Event), e.Reason, grouped(uint64(e.Packets)), grouped(uint64(e.Len)), held, eventFlow(e))
	}
	return err
}

const traceRow = "%-15s  %-3s  %-5s  %-20s  %7s  %6s  %-7s  %s\n"

// eventFlow names the flow of an event; the stations where it has none, or where they are what it is about.
func eventFlow(e *api.TraceEvent) string {
	if e.Src == "" || e.Reason == "source_mac" {
		return fmt.Sprintf("%s > %s, type 0x%04x", orDash(e.SrcMAC), orDash(e.DstMAC), e.EtherType)
	}
	if e.SrcPort == 0 && e.DstPort == 0 {
		return e.Src + " > " + e.Dst
	}
	return endpoint(e.Src, e.SrcPort) + " > " + endpoint(e.Dst, e.DstPort)
}
