package main

import (
	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func detachCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "detach",
		Usage:     "take a VM, or every VM, off an interface",
		ArgsUsage: "IFACE",
		UsageText: "rscctl detach IFACE [--vm NAME]",
		Description: `Without --vm every VM of the interface is detached. With the last one the XDP program leaves the interface and what
attach changed is put back.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "vm", Usage: "`NAME` of the VM", DefaultText: "every VM"},
			outputFlag(), socketFlag(),
		},
		Action: func(c *cli.Context) error { return detach(c, s) },
	}
}

func detach(c *cli.Context, s streams) error {
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	args, err := positionals(c, 1, 1, "IFACE")
	if err != nil {
		return err
	}
	if c.IsSet("vm") && c.String("vm") == "" {
		return usagef("detach: --vm: empty name: give the VM's name, or leave --vm out for every VM")
	}
	resp, err := client(c).Detach(c.Context, api.DetachRequest{Iface: args[0], VM: c.String("vm")})
	if err != nil {
		return on("detach", err)
	}
	if asJSON {
		return printJSON(s.out, resp)
	}
	p := newPrinter(s.out)
	for _, vm := range resp.VMs {
		p.line("detached %s from %s", vm, resp.Iface)
	}
	for _, r := range resp.Restored {
		p.line("  restored: %s", r)
	}
	for _, w := range resp.Warnings {
		p.line("  warning: %s", w)
	}
	return p.flush()
}
