package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func statusCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show interfaces, queues, modes, VMs, negotiated features and health",
		ArgsUsage: "[IFACE]",
		UsageText: "rscctl status [IFACE]",
		Flags:     []cli.Flag{outputFlag(), socketFlag()},
		Action:    func(c *cli.Context) error { return status(c, s) },
	}
}

func status(c *cli.Context, s streams) error {
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	args, err := positionals(c, 0, 1, "[IFACE]")
	if err != nil {
		return err
	}
	st, err := client(c).Status(c.Context, strings.Join(args, ""))
	if err != nil {
		return on("status", err)
	}
	if asJSON {
		return printJSON(s.out, st)
	}
	return printStatus(s.out, st, time.Now())
}

func printStatus(w io.Writer, st *api.Status, now time.Time) error {
	p := newPrinter(w)
	p.row("controller", fmt.Sprintf("%s, pid %d, up %s", st.Version, st.PID, duration(now.Sub(st.StartedAt))))
	p.row("state", st.State)
	pin := st.FlowsPin
	if pin == "" {
		pin = "not pinned: flow counters end with the controller"
	}
	p.row("flow map", pin)
	warnings := allWarnings(st)
	p.row("health", health(len(warnings), len(st.Waiting)))
	if len(st.Interfaces) == 0 && len(st.Waiting) == 0 {
		p.line("\nno VM is attached: see rscctl attach --help")
	}
	printWaiting(p, st, now)
	if len(st.Interfaces) > 0 {
		printInterfaces(p, st)
		printQueues(p, st)
		printPorts(p, st)
		printFeatures(p, st)
		printChanges(p, st)
	}
	if len(warnings) > 0 {
		p.line("\nwarnings:")
		for _, w := range warnings {
			p.line("  %s", w)
		}
	}
	return p.flush()
}

func health(warnings, waiting int) string {
	var said []string
	if waiting > 0 {
		said = append(said, plural(waiting, "VM waits", "VMs wait"))
	}
	if warnings > 0 {
		said = append(said, plural(warnings, "warning", "warnings"))
	}
	if len(said) == 0 {
		return "good"
	}
	return strings.Join(said, ", ") + ", see below"
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// printWaiting lists the VMs that are known and not attached now.
func printWaiting(p *printer, st *api.Status, now time.Time) {
	if len(st.Waiting) == 0 {
		return
	}
	p.line("")
	p.row("WAITING VM", "INTERFACE", "MAC", "VLAN", "FOR", "NEXT TRY", "CAUSE")
	for _, w := range st.Waiting {
		next := "within 1 s"
		if wait := w.NextTry.Sub(now); wait > time.Second {
			next = "in " + duration(wait.Round(time.Second))
		}
		p.row(w.VM, w.Iface, w.MAC, vlanText(w.VLAN), duration(now.Sub(w.Since)), next, w.Cause)
	}
	p.line("A waiting VM comes back by itself once the cause is gone; 'rscctl detach INTERFACE --vm VM' gives it up.")
}

func vlanText(id int) string {
	if id == 0 {
		return "-"
	}
	return strconv.Itoa(id)
}

// allWarnings puts what a warning is about in front of it.
func allWarnings(st *api.Status) []string {
	list := append([]string(nil), st.Warnings...)
	for i := range st.Interfaces {
		nic := &st.Interfaces[i]
		for _, w := range nic.Warnings {
			list = append(list, nic.Name+": "+w)
		}
		for j := range nic.Ports {
			if port := &nic.Ports[j]; port.State == api.PortFailed {
				list = append(list, nic.Name+"/"+port.VM+": failed: "+orDash(port.StopReason))
			}
			for _, w := range nic.Ports[j].Warnings {
				list = append(list, nic.Name+"/"+nic.Ports[j].VM+": "+w)
			}
		}
	}
	return list
}

func printInterfaces(p *printer, st *api.Status) {
	p.line("")
	p.row("INTERFACE", "DRIVER", "MTU", "XDP", "AF_XDP", "METADATA", "QUEUES", "VMS")
	for i := range st.Interfaces {
		nic := &st.Interfaces[i]
		p.row(nic.Name, orDash(nic.Driver), strconv.Itoa(nic.MTU), string(nic.XDPMode), string(nic.XSKMode), metadataText(nic.Metadata),
			strconv.Itoa(len(nic.Queues)), strconv.Itoa(len(nic.Ports)))
	}
}

// metadataText is "-" before the first frame: nobody knows yet whether the driver hands the descriptor on.
func metadataText(yes *bool) string {
	switch {
	case yes == nil:
		return "-"
	case *yes:
		return "yes"
	}
	return "no, frames are parsed twice"
}

func printQueues(p *printer, st *api.Status) {
	p.line("")
	p.row("QUEUE", "RX FRAMES", "TX FRAMES", "LOST: FILL EMPTY", "RX FULL", "TX FULL", "CHUNKS HELD", "OPEN SLOTS")
	for i := range st.Interfaces {
		for _, q := range st.Interfaces[i].Queues {
			p.row(queueCells(st.Interfaces[i].Name+"/"+strconv.Itoa(q.ID), q)...)
		}
	}
}

func queueCells(name string, q api.Queue) []string {
	return []string{
		name, grouped(q.RxFrames), grouped(q.TxFrames), grouped(q.RxFillEmpty), grouped(q.RxRingFull), grouped(q.TxRingFull),
		fmt.Sprintf("%d of %d", q.Held, q.Chunks), strconv.Itoa(q.OpenSlots),
	}
}

func printPorts(p *printer, st *api.Status) {
	p.line("")
	p.row("VM", "INTERFACE", "MAC", "VLAN", "STATE", "PAIRS", "RING", "COALESCE", "PROFILE", "HOLD", "FEED", "SOCKET OR TAP")
	for i := range st.Interfaces {
		for _, port := range st.Interfaces[i].Ports {
			profile := string(port.Effective)
			if port.Effective != port.Policy.Profile && port.Policy.Coalesce {
				profile += " (asked: " + string(port.Policy.Profile) + ")"
			}
			p.row(port.VM, st.Interfaces[i].Name, port.MAC, vlanText(port.VLAN), string(port.State), strconv.Itoa(port.QueuePairs),
				strconv.Itoa(port.QueueSize), onOffText(port.Policy.Coalesce), profile,
				duration(time.Duration(port.Policy.HoldNS)), string(port.Feed), port.Socket+port.Tap+" ("+string(port.Mode)+")")
		}
	}
}

func printFeatures(p *printer, st *api.Status) {
	p.line("")
	p.row("VM", "NEGOTIATED FEATURES AND NOTES")
	for i := range st.Interfaces {
		for _, port := range st.Interfaces[i].Ports {
			features := strings.Join(port.Features, " ")
			if features == "" {
				features = "none yet"
			}
			p.row(port.VM, features)
			for _, note := range portNotes(port) {
				p.row("", note)
			}
		}
	}
}

func portNotes(port api.Port) []string {
	var notes []string
	told := func(w string) bool { return strings.Contains(w, port.StopReason) } // as a failure does
	if port.StopReason != "" && port.State != api.PortFailed && !slices.ContainsFunc(port.Warnings, told) {
		notes = append(notes, string(port.State)+": "+port.StopReason)
	}
	if port.PolicyNote != "" {
		notes = append(notes, "profile: "+port.PolicyNote)
	}
	if port.Proof != "" {
		notes = append(notes, "its tap: "+port.Proof)
	}
	if port.FeedNote != "" {
		notes = append(notes, "feed: "+port.FeedNote)
	}
	for _, rule := range port.Bypassed {
		notes = append(notes, "bypassed: "+rule)
	}
	if port.AllowSpoof {
		notes = append(notes, "may send with foreign source MACs")
	}
	return notes
}

func printChanges(p *printer, st *api.Status) {
	first := true
	for i := range st.Interfaces {
		for _, change := range st.Interfaces[i].Changes {
			if first {
				p.line("\nchanged on this host, undone by detach:")
				first = false
			}
			p.line("  %s: %s", st.Interfaces[i].Name, change)
		}
	}
}
