package main

import (
	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/demo"
)

func demoCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "show the whole path on this machine, in under a minute",
		Description: `A sender, a controller and a guest run as three processes in network namespaces of their own, coalescing off and on in
turn. Prints both rates, frame sizes, the ratio and the reasons. Needs root and leaves nothing behind.`,
		Flags: []cli.Flag{
			boolFlag("ipv6", "use IPv6 instead of IPv4"),
			outputFlag(),
		},
		Action: func(c *cli.Context) error {
			if _, err := positionals(c, 0, 0, ""); err != nil {
				return err
			}
			asJSON, err := format(c)
			if err != nil {
				return err
			}
			return on("demo", demo.Run(c.Context, demo.Options{
				JSON: asJSON, IPv6: c.Bool("ipv6"), Stdout: s.out, Stderr: s.err, Version: version(),
			}))
		},
	}
}

// demoChildCommand is one of the demo's own processes. It is no verb for people.
func demoChildCommand() *cli.Command {
	return &cli.Command{
		Name:   demo.ChildVerb,
		Hidden: true,
		Action: func(c *cli.Context) error {
			args, err := positionals(c, 1, 1, "ROLE")
			if err != nil {
				return err
			}
			return on(c.Command.Name, demo.Child(c.Context, args[0], version()))
		},
	}
}
