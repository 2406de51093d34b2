package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/near"
)

func policyCommand(s streams) *cli.Command {
	common := []cli.Flag{
		boolFlag("default", "instead of VM: the policy of VMs that are attached from now on"), outputFlag(), socketFlag(),
	}
	const what = "(VM | --default)"
	return &cli.Command{
		Name:      "policy",
		Usage:     "show or change what coalescing does for a VM, while it runs",
		UsageText: "rscctl policy get (VM | --default)\nrscctl policy set (VM | --default) [flags]\nrscctl policy reset (VM | --default)",
		Action: func(c *cli.Context) error {
			if w := c.Args().First(); w != "" {
				return usagef("policy: %s: no such sub-verb: %ssay get, set or reset", w, near.Hint(w, names(c.Command.Subcommands)))
			}
			return usagef("policy: sub-verb missing: say get, set or reset")
		},
		Subcommands: []*cli.Command{
			{
				Name: "get", Usage: "show the policy of a VM", ArgsUsage: what, Flags: common,
				Action: func(c *cli.Context) error { return policyGet(c, s) },
			},
			{
				Name: "set", Usage: "change the policy of a VM; what is not named stays", ArgsUsage: what,
				Description: `With -f the fields come from a file of JSON, as 'policy get -o json' prints it; flags beside it win:
   rscctl policy get web1 -o json | rscctl policy set web2 -f -`,
				Flags: append(append(append(append(tenantFlags(), furtherFlag()), policyFlags()...),
					&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "take the policy from `FILE`, - for standard input"}), common...),
				Action: func(c *cli.Context) error { return policySet(c, s) },
			},
			{
				Name: "reset", Usage: "give a VM the default policy; with --default, the product's", ArgsUsage: what, Flags: common,
				Action: func(c *cli.Context) error { return policyReset(c, s) },
			},
		},
	}
}

// policyOf reads whose policy is meant: a VM's, or with --default that of those to come.
func policyOf(c *cli.Context) (vm string, err error) {
	required := 1
	if c.Bool("default") {
		required = 0
	}
	args, err := positionals(c, required, 1, "VM")
	if err != nil {
		return "", err
	}
	if len(args) == 1 && required == 0 {
		return "", usagef("%s: %s and --default: name one of them", verbOf(c), args[0])
	}
	return c.Args().First(), nil
}

func policyGet(c *cli.Context, s streams) error {
	vm, err := policyOf(c)
	if err != nil {
		return err
	}
	return showPolicy(c, s, func() (*api.PolicyResponse, error) {
		if vm == "" {
			return client(c).DefaultPolicy(c.Context)
		}
		return client(c).GetPolicy(c.Context, vm)
	})
}

func policySet(c *cli.Context, s streams) error {
	vm, err := policyOf(c)
	if err != nil {
		return err
	}
	patch, err := policyPatch(c)
	if err != nil {
		return on("policy set", err)
	}
	if c.IsSet("file") {
		from, err := policyFile(c.String("file"), s.in)
		if err != nil {
			return on("policy set", err)
		}
		patch = patch.Merge(from)
	}
	ips, err := ipList(c)
	if err != nil {
		return on("policy set", err)
	}
	var macs *[]string
	if c.IsSet("mac") {
		if macs, err = macList(c.StringSlice("mac")); err != nil {
			return on("policy set", err)
		}
	}
	if vm == "" && (ips != nil || macs != nil) {
		return usagef("policy set: --ip, --mac: an address is one VM's: name the VM instead of --default")
	}
	if patch == (api.PolicyPatch{}) && ips == nil && macs == nil {
		return usagef("policy set: nothing to set on %s: give a flag like --coalesce off, see rscctl policy set --help", cmp.Or(vm, "the default"))
	}
	return showPolicy(c, s, func() (*api.PolicyResponse, error) {
		return client(c).SetPolicy(c.Context, api.PolicyRequest{VM: vm, Default: vm == "", Patch: patch, MACs: macs, IPs: ips})
	})
}

func policyReset(c *cli.Context, s streams) error {
	vm, err := policyOf(c)
	if err != nil {
		return err
	}
	return showPolicy(c, s, func() (*api.PolicyResponse, error) {
		return client(c).SetPolicy(c.Context, api.PolicyRequest{VM: vm, Default: vm == "", Reset: true})
	})
}

const maxPolicyFile = 64 << 10

// policyFile reads what 'policy get -o json' prints. Only what it says of the policy is taken.
func policyFile(name string, stdin io.Reader) (api.PolicyPatch, error) {
	from, what, err := openInput(name, stdin)
	if err != nil {
		return api.PolicyPatch{}, err
	}
	defer from.Close()
	var in struct {
		api.PolicyResponse
		Policy *api.PolicyPatch `json:"policy"`
	}
	d := json.NewDecoder(io.LimitReader(from, maxPolicyFile))
	d.DisallowUnknownFields()
	err = d.Decode(&in)
	if err == nil && in.Policy == nil {
		err = errors.New("it has no policy")
	}
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows it")
		}
	}
	if err != nil {
		return api.PolicyPatch{}, fmt.Errorf("%s: not a policy: %w: give what 'rscctl policy get VM -o json' prints", what, api.JSONError(err))
	}
	return *in.Policy, nil
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
	if resp.Default {
		p.row("vm", "those attached from now on")
	} else {
		p.row("vm", resp.VM)
	}
	p.row("coalesce", onOffText(pol.Coalesce))
	p.row("ipv4", onOffText(pol.IPv4))
	p.row("ipv6", onOffText(pol.IPv6))
	p.row("udp", withNote(onOffText(pol.UDP), resp.UDPNote))
	p.row("profile", string(pol.Profile))
	p.row("in effect", withNote(string(resp.Effective), resp.Note))
	p.row("hold", holdNow(pol, resp.HoldNowNS))
	p.row("max bytes", grouped(uint64(max(pol.MaxBytes, 0))))
	p.row("max segments", orUnlimited(pol.MaxSegments))
	p.row("excluded ports", portList(pol.ExcludePorts))
	p.row("isolate", onOffText(pol.Isolate))
	p.row("host", onOffText(pol.Host))
	p.row("rate tx", rateWords(pol.RateTx, pol.BurstTx))
	p.row("rate rx", rateWords(pol.RateRx, pol.BurstRx))
	if !resp.Default {
		p.row("further macs", cmp.Or(strings.Join(resp.MACs, ", "), "none"))
		p.row("ip", cmp.Or(strings.Join(resp.IPs, ", "), "any"))
	}
	return p.flush()
}

// holdNow is a policy's hold, and how long an adaptive one is now.
func holdNow(p api.Policy, now int64) string {
	if !p.HoldAdaptive {
		return duration(time.Duration(p.HoldNS))
	}
	text := "adaptive, at most " + duration(time.Duration(p.HoldNS))
	if now > 0 {
		text += ", now " + duration(time.Duration(now).Round(100*time.Nanosecond))
	}
	return text
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

// rateWords is a rate with the burst that it has.
func rateWords(rate, burst uint64) string {
	if rate == 0 {
		return "no limit"
	}
	return api.RateText(rate, api.BurstFor(rate, burst))
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
