package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/doctor"
)

func doctorCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "say what of this host keeps rscctl from working, and what mends it",
		ArgsUsage: "[IFACE]",
		UsageText: "rscctl doctor [IFACE] [--fix|--undo] [--verbose] [-o table|json]",
		Description: `Looks at kernel, BTF, capabilities, limits, the bpf filesystem, AF_XDP, devices, QEMU and libvirt, and at IFACE, without
one at all hardware interfaces: can it be an uplink, MTU, XDP modes, zero-copy, queues, offloads, a veth's other end. Each
finding says what, why it matters, and what mends it. Needs no controller and changes nothing; who is not root is told
what could not be looked at.

--fix does what is safe: it switches off the offloads of IFACE, and of its veth peer, that stand in the way, and removes the
TC filters that a dead controller left on taps. Offloads are written down below the state directory first, and --undo
switches them on again.

Exit codes: 0 nothing keeps rscctl from working, 1 something does (or --fix or --undo failed), 2 wrong usage.`,
		Flags: []cli.Flag{
			boolFlag("fix", "do what is safe of the remedies"),
			boolFlag("undo", "take back what --fix switched, of IFACE or of all"),
			boolFlag("verbose", "show what is well, too (JSON always has it)"),
			outputFlag(), stateFlag(), bpffsFlag(),
		},
		Action: func(c *cli.Context) error { return runDoctor(c, s) },
	}
}

func runDoctor(c *cli.Context, s streams) error {
	args, err := positionals(c, 0, 1, "[IFACE]")
	if err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	if c.Bool("fix") && c.Bool("undo") {
		return usagef("doctor: --fix and --undo: say one of them")
	}
	iface := ""
	if len(args) > 0 {
		iface = args[0]
	}
	report := doctor.Report{Schema: api.Schema, Findings: []doctor.Finding{}}
	var failed error
	if c.Bool("undo") {
		report.Undone, failed = doctor.Undo(c.String("state"), iface)
	} else {
		if report.Findings, err = examine(c, iface); err != nil {
			return err
		}
		if c.Bool("fix") {
			if report.Fixed, failed = doctor.Fix(c.String("state"), report.Findings); len(report.Fixed) > 0 {
				if report.Findings, err = examine(c, iface); err != nil {
					return errors.Join(failed, err)
				}
			}
		}
	}
	switch {
	case asJSON:
		err = printJSON(s.out, report)
	case failed != nil && c.Bool("undo") && len(report.Undone) == 0: // and whether there was something is not known
	default:
		err = printReport(newPrinter(s.out), report, c.Bool("undo"), c.Bool("verbose"))
	}
	if n := doctor.Count(report.Findings, doctor.Error); n > 0 && failed == nil {
		failed = fmt.Errorf("doctor: %s from working: do what stands below each", plural(n, "error keeps", "errors keep")+" rscctl")
	}
	return errors.Join(err, failed)
}

func examine(c *cli.Context, iface string) ([]doctor.Finding, error) {
	facts, err := doctor.Gather(c.Context, iface, c.String("bpffs"))
	if err != nil {
		return nil, err
	}
	return doctor.Examine(facts), nil
}

// printReport prints a line for each finding, and one for its remedy.
func printReport(p *printer, r doctor.Report, undo, verbose bool) error {
	for _, text := range r.Fixed {
		p.line("fixed    %s", text)
	}
	for _, text := range r.Undone {
		p.line("undone   %s", text)
	}
	if undo {
		if len(r.Undone) == 0 {
			p.line("nothing to undo")
		}
		return p.flush()
	}
	for _, f := range r.Findings {
		if f.Severity == doctor.OK && !verbose {
			continue
		}
		p.line("%-8s %s", f.Severity, oneLine(f.String()))
		if f.Remedy != "" {
			by := ""
			if f.Fixable {
				by = "  (--fix does it)"
			}
			p.line("         -> %s%s", oneLine(f.Remedy), by)
		}
	}
	p.line("%s, %s, %s, %d looked at and well", plural(doctor.Count(r.Findings, doctor.Error), "error", "errors"),
		plural(doctor.Count(r.Findings, doctor.Warning), "warning", "warnings"), plural(doctor.Count(r.Findings, doctor.Note), "note", "notes"),
		doctor.Count(r.Findings, doctor.OK))
	return p.flush()
}

// canRun says all that a controller lacks to start, each with its remedy.
func canRun(c *cli.Context) error {
	var lines []string
	for _, f := range doctor.Needs(doctor.GatherHost(c.String("bpffs"))) {
		lines = append(lines, fmt.Sprintf("%s: %s", strings.TrimPrefix(f.String(), doctor.Host+": "), f.Remedy))
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "; "))
}
