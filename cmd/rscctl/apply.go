package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/apply"
)

func applyCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "apply",
		Usage:     "bring interfaces, VMs and policies to what a file describes",
		UsageText: "rscctl apply -f FILE [--dry-run] [--prune] [-o table|json]",
		Description: `FILE is YAML or JSON, - for standard input; 'rscctl export' writes one. What it does not say of a VM is the default. Prints what
differs, and does it: a policy is changed while the VM runs, everything else by detaching and attaching, which takes the VM's link
down for a moment. A VM that cannot be attached as described is attached as it was. Done twice, the second time finds nothing to do.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "the description, `FILE` or -"},
			boolFlag("dry-run", "only print what differs, and what the controller would refuse"),
			boolFlag("prune", "detach the VMs that FILE does not name"),
			outputFlag(), socketFlag(),
		},
		Action: func(c *cli.Context) error { return runApply(c, s) },
	}
}

func exportCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:        "export",
		Usage:       "write what the controller has, as a file for apply",
		Description: "Writes YAML or JSON to standard output: every VM, attached or waiting, with what of it is not the default.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `FORMAT`: yaml or json", Value: "yaml"},
			socketFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := positionals(c, 0, 0, ""); err != nil {
				return err
			}
			asJSON, err := formatOr(c, "yaml")
			if err != nil {
				return err
			}
			config, err := client(c).Config(c.Context)
			if err != nil {
				return on("export", err)
			}
			if asJSON {
				return on("export", apply.Export(config).WriteJSON(s.out))
			}
			return on("export", apply.Export(config).Write(s.out))
		},
	}
}

// applied is what apply prints of a step, in JSON.
type applied struct {
	apply.Step
	Warnings []string `json:"warnings,omitempty"`
	Error    string   `json:"error,omitempty"`
}

func runApply(c *cli.Context, s streams) error {
	if _, err := positionals(c, 0, 0, ""); err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	f, err := readDescription(c.String("file"), s.in)
	if err != nil {
		return err
	}
	cl := client(c)
	config, err := cl.Config(c.Context)
	if err != nil {
		return err
	}
	p, done, failed := newPrinter(s.out), []applied{}, 0
	plan := apply.Plan(f, config, c.Bool("prune"))
	var unwritten error
	for _, step := range plan {
		if c.Context.Err() != nil {
			break
		}
		a := applied{Step: step}
		if a.Warnings, err = carryOut(c.Context, cl, &step, c.Bool("dry-run")); err != nil {
			a.Error, failed = oneLine(err.Error()), failed+1
			if c.Context.Err() != nil {
				a.Error = "interrupted: 'rscctl status' says whether it was done"
			}
		}
		if done = append(done, a); !asJSON {
			printApplied(p, &a)
			unwritten = cmp.Or(unwritten, p.flush()) // now: a step may take a while, and the next be interrupted
		}
	}
	if asJSON {
		unwritten = printJSON(s.out, struct {
			Schema int       `json:"schema"`
			DryRun bool      `json:"dry_run"`
			Steps  []applied `json:"steps"`
		}{api.Schema, c.Bool("dry-run"), done})
	} else {
		if len(plan) == 0 {
			p.line("nothing to do")
		}
		unwritten = cmp.Or(unwritten, p.flush())
	}
	switch {
	case len(done) < len(plan):
		err = fmt.Errorf("interrupted: %d of %d steps were not begun: apply again for these", len(plan)-len(done), len(plan))
	case failed > 0:
		err = fmt.Errorf("%s", plural(failed, "step failed", "steps failed"))
	default:
		err = nil
	}
	return errors.Join(err, unwritten)
}

func carryOut(ctx context.Context, cl *api.Client, step *apply.Step, dry bool) ([]string, error) {
	if dry {
		return step.Try(ctx, cl)
	}
	return step.Do(ctx, cl)
}

func printApplied(p *printer, a *applied) {
	p.line("%s", oneLine(a.String()))
	for _, w := range a.Warnings {
		p.line("  warning: %s", oneLine(w))
	}
	if a.Error != "" {
		p.line("  failed: %s", a.Error)
	}
}

// readDescription reads a file, or with - standard input.
func readDescription(name string, stdin io.Reader) (*apply.File, error) {
	if name == "" {
		return nil, usagef("apply: which description? give -f FILE, or -f - for standard input")
	}
	in, what, err := openInput(name, stdin)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	f, err := apply.Read(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return f, nil
}

// openInput opens a file, or with - standard input, where there is one (not nil). what names it in messages.
func openInput(name string, stdin io.Reader) (in io.ReadCloser, what string, err error) {
	if name == "-" {
		return io.NopCloser(stdin), "standard input", nil
	}
	remedy := "name a file this user may read"
	if stdin != nil {
		remedy += ", or - for standard input"
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s", err, remedy)
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		f.Close()
		return nil, "", fmt.Errorf("%s: is a folder: %s", name, remedy)
	}
	return f, name, nil
}
