package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/near"
)

func policyCommand(s streams) *cli.Command {
	common := []cli.Flag{outputFlag(), socketFlag()}
	return &cli.Command{
		Name:      "policy",
		Usage:     "show or change what coalescing does for a VM, while it runs",
		UsageText: "rscctl policy get VM\nrscctl policy set VM [flags]\nrscctl policy reset VM",
		Action: func(c *cli.Context) error {
			if w := c.Args().First(); w != "" {
				return usagef("policy: %s: no such sub-verb: %ssay get, set or reset", w, near.Hint(w, names(c.Command.Subcommands)))
			}
			return usagef("policy: sub-verb missing: say get, set or reset")
		},
		Subcommands: []*cli.Command{
			{
				Name: "get", Usage: "show the policy of a VM", ArgsUsage: "VM", Flags: common,
				Action: func(c *cli.Context) error { return policyGet(c, s) },
			},
			{
				Name: "set", Usage: "change the policy of a VM; what is not named stays", ArgsUsage: "VM",
				Flags:  append(policyFlags(), common...),
				Action: func(c *cli.Context) error { return policySet(c, s) },
			},
			{
				Name: "reset", Usage: "give a VM the default policy", ArgsUsage: "VM", Flags: common,
				Action: func(c *cli.Context) error { return policyReset(c, s) },
			},
		},
	}
}

func policyGet(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "VM")
	if err != nil {
		return err
	}
	return showPolicy(c, s, func() (*api.PolicyResponse, error) { return client(c).GetPolicy(c.Context, args[0]) })
}

func policySet(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "VM")
	if err != nil {
		return err
	}
	patch, err := policyPatch(c)
	if err != nil {
		return on("policy set", err)
	}
	if patch == (api.PolicyPatch{}) {
		return usagef("policy set: nothing to set on %s: give a flag like --coalesce off, see rscctl policy set --help", args[0])
	}
	return showPolicy(c, s, func() (*api.PolicyResponse, error) {
		return client(c).SetPolicy(c.Context, api.PolicyRequest{VM: args[0], Patch: patch})
	})
}

func policyReset(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "VM")
	if err != nil {
		return err
	}
	return showPolicy(c, s, func() (*api.PolicyResponse, error) {
		return client(c).SetPolicy(c.Context, api.PolicyRequest{VM: args[0], Reset: true})
	})
}

// showPolicy checks the output format before anything is changed.
func showPolicy(c *cli.Context, s streams, call func() (*api.PolicyResponse, error)) error {
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	resp, err := call()
	if err != nil {
		return on("policy "+c.Command.Name, err)
	}
	if asJSON {
		return printJSON(s.out, resp)
	}
	p := newPrinter(s.out)
	pol := resp.Policy
	p.row("vm", resp.VM)
	p.row("coalesce", onOffText(pol.Coalesce))
	p.row("ipv4", onOffText(pol.IPv4))
	p.row("ipv6", onOffText(pol.IPv6))
	p.row("profile", string(pol.Profile))
	p.row("in effect", withNote(string(resp.Effective), resp.Note))
	p.row("hold", duration(time.Duration(pol.HoldNS)))
	p.row("max bytes", grouped(uint64(max(pol.MaxBytes, 0))))
	p.row("max segments", orUnlimited(pol.MaxSegments))
	p.row("excluded ports", portList(pol.ExcludePorts))
	return p.flush()
}

func onOffText(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func withNote(text, note string) string {
	if note == "" {
		return text
	}
	return text + " (" + note + ")"
}

func orUnlimited(n int) string {
	if n == 0 {
		return "no limit"
	}
	return strconv.Itoa(n)
}

func portList(ports []uint16) string {
	if len(ports) == 0 {
		return "none"
	}
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = strconv.Itoa(int(p))
	}
	return strings.Join(words, ", ")
}
