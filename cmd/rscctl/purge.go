package main

import (
	"errors"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/doctor"
)

func purgeCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "purge",
		Usage:     "take off this host all that a controller that has ended left there",
		ArgsUsage: "",
		Description: `A controller that ends keeps its state and the flow counters for the next one. Purge takes them away: what attach and doctor --fix
changed and nobody put back is put back, the pinned flow maps and the state go, and with it what it knew of the VMs ('rscctl export'
writes that into a file beforehand). Refused while a controller runs there: 'rscctl detach' is for that.`,
		Flags:  []cli.Flag{boolFlag("dry-run", "only say what would go"), stateFlag(), socketFlag(), bpffsFlag(), outputFlag()},
		Action: func(c *cli.Context) error { return purge(c, s) },
	}
}

func purge(c *cli.Context, s streams) error {
	if _, err := positionals(c, 0, 0, ""); err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	dry := c.Bool("dry-run")
	places := controller.Options{State: c.String("state"), Socket: c.String("socket"), BPFFS: c.String("bpffs"), Logger: slog.New(slog.DiscardHandler)}
	if _, err := controller.Purge(places, true); errors.Is(err, api.ErrHeld) { // before anything is undone
		return err
	}
	done := []string{}
	if !dry {
		undone, err := doctor.Purge(places.State)
		if done = append(done, undone...); err != nil {
			return err
		}
	}
	more, err := controller.Purge(places, dry)
	done = append(done, more...)
	if asJSON {
		return errors.Join(err, printJSON(s.out, map[string]any{"schema": api.Schema, "dry_run": dry, "done": done}))
	}
	p := newPrinter(s.out)
	for _, line := range done {
		if dry {
			line = "would be: " + line
		}
		p.line("%s", oneLine(line))
	}
	if len(done) == 0 && err == nil {
		p.line("nothing to purge")
	}
	return errors.Join(err, p.flush())
}
