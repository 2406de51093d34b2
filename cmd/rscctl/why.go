package main

import (
	"context"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/why"
)

func whyCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "why",
		Usage:     "say in words what is merged for a VM, what is not and why, and what to do",
		ArgsUsage: "VM",
		Description: `Reads what status and stats show, and says of it what matters: what share is merged and what that is worth, why superframes
are not longer, why packets pass alone, how long frames wait, what was dropped and whose fault it is. A line behind -> says
what to do. All of it counts from the VM's attach on.`,
		Flags:  []cli.Flag{outputFlag(), socketFlag()},
		Action: func(c *cli.Context) error { return runWhy(c, s) },
	}
}

func runWhy(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "VM")
	if err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	vm, err := askAbout(c.Context, client(c), args[0])
	if err != nil {
		return err
	}
	answer := why.Explain(vm)
	if asJSON {
		return printJSON(s.out, answer)
	}
	p := newPrinter(s.out)
	p.line("%s on %s", oneLine(answer.VM), answer.Iface)
	for _, e := range answer.Sentences {
		p.line("  %s", oneLine(e.Text))
		if e.Do != "" {
			p.line("    -> %s", oneLine(e.Do))
		}
	}
	return p.flush()
}

// askAbout asks the controller all that why needs of a VM.
func askAbout(ctx context.Context, cl *api.Client, name string) (vm why.VM, err error) {
	status, err := cl.Status(ctx, "")
	if err != nil {
		return vm, err
	}
	for i := range status.Waiting {
		if status.Waiting[i].VM == name {
			return why.VM{Waiting: &status.Waiting[i]}, nil
		}
	}
	stats, err := cl.Stats(ctx, name)
	if err != nil {
		return vm, reworded{err, strings.TrimPrefix(err.Error(), "stats: ")} // who asked why knows of no stats
	}
	if len(stats.VMs) != 1 {
		return vm, api.ErrUnknownVM
	}
	vm.Stats = &stats.VMs[0]
	for i := range status.Interfaces {
		iface := &status.Interfaces[i]
		for n := range iface.Ports {
			if iface.Ports[n].VM == name {
				vm.Port, vm.Queues = &iface.Ports[n], iface.Queues
			}
		}
	}
	return vm, nil
}

// reworded is an error in other words.
type reworded struct {
	error
	text string
}

func (r reworded) Error() string { return r.text }
func (r reworded) Unwrap() error { return r.error }
