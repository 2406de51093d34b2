package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func socketFlag() cli.Flag {
	return &cli.StringFlag{Name: "socket", Usage: "control socket `PATH`", Value: api.DefaultSocket,
		EnvVars: []string{"RSCCTL_SOCKET"}}
}

func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", Usage: "`DIR` of what survives a restart", Value: "/var/lib/rscctl",
		EnvVars: []string{"RSCCTL_STATE"}}
}

func bpffsFlag() cli.Flag {
	return &cli.StringFlag{Name: "bpffs", Usage: "`DIR` on a bpf filesystem for the pinned flow map", Value: "/sys/fs/bpf/rscctl",
		EnvVars: []string{"RSCCTL_BPFFS"}}
}

// boolFlag is off unless given, which its help need not say.
func boolFlag(name, usage string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: usage, DisableDefaultText: true}
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `FORMAT`: table or json", Value: "table"}
}

func watchFlags() []cli.Flag {
	return []cli.Flag{
		boolFlag("watch", "print again and again until interrupted"),
		intervalFlag("prints with --watch"),
	}
}

func intervalFlag(of string) cli.Flag {
	return &cli.DurationFlag{Name: "interval", Usage: "`TIME` between two " + of, Value: time.Second}
}

func policyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "coalesce", Category: "policy:", Usage: "merge segments: `on|off`", DefaultText: "on"},
		&cli.StringFlag{Name: "ipv4", Category: "policy:", Usage: "merge IPv4: `on|off`", DefaultText: "on"},
		&cli.StringFlag{Name: "ipv6", Category: "policy:", Usage: "merge IPv6: `on|off`", DefaultText: "on"},
		&cli.StringFlag{Name: "udp", Category: "policy:", Usage: "merge UDP datagrams too, for guests that negotiated GUEST_USO4 or GUEST_USO6: `on|off`", DefaultText: "on"},
		&cli.StringFlag{Name: "profile", Category: "policy:", Usage: "rules of `PROFILE` gro (lossless) or rsc (Windows' rules, needs " +
			"a guest that negotiated RSC_EXT)", DefaultText: "gro"},
		&cli.StringFlag{Name: "hold", Category: "policy:", Usage: "how long a segment waits for its successors, `HOLD`: adaptive, as long as it is worth it " +
			"for its flow, or adaptive:TIME, never longer than TIME; TIME alone: always so long. At most 10ms; 0: only segments received together merge", DefaultText: "adaptive"},
		&cli.StringFlag{Name: "max-bytes", Category: "policy:", Usage: "largest IP packet made, in `BYTES`, 1500 to 65535",
			DefaultText: "65535"},
		&cli.StringFlag{Name: "max-segments", Category: "policy:", Usage: "merge at most `N` segments into one frame; 0: no limit but --max-bytes",
			DefaultText: "0"},
		&cli.StringSliceFlag{Name: "exclude-port", Category: "policy:", Usage: "TCP `PORT` never merged, may be repeated for up to 64; " +
			"none: no port is excluded", DefaultText: "none"},
		&cli.BoolFlag{Name: "isolate", Category: "policy:", Usage: "keep the VM and the VMs beside it on the interface apart; off: let them reach one another",
			DisableDefaultText: true},
		&cli.StringFlag{Name: "host", Category: "policy:", Usage: "the host, and what is behind its bridges, is a neighbour of the VM: `on|off`; off: what the VM " +
			"sends to the host leaves by the wire alone", DefaultText: "on"},
		&cli.StringFlag{Name: "rate-tx", Category: "policy:", Usage: "the VM may send `RATE[/BURST]`, such as 100Mbit, 1.5Gbit/256KiB: bytes on the wire, " +
			"8kbit to 1Tbit a second, and 1514 bytes to 1GiB at once; what is more waits in the guest; none: any", DefaultText: "none"},
		&cli.StringFlag{Name: "rate-rx", Category: "policy:", Usage: "the VM gets `RATE[/BURST]`, in the same words; what is more waits for up to 50 ms, and is then dropped",
			DefaultText: "none"},
	}
}

// policyPatch reads the policy flags. Only flags that were given change anything.
func policyPatch(c *cli.Context) (api.PolicyPatch, error) {
	var p api.PolicyPatch
	var err error
	keep := func(e error) {
		if err == nil {
			err = e
		}
	}
	for _, s := range []struct {
		name   string
		target **bool
	}{{"coalesce", &p.Coalesce}, {"ipv4", &p.IPv4}, {"ipv6", &p.IPv6}, {"udp", &p.UDP}, {"host", &p.Host}} {
		if c.IsSet(s.name) {
			on, e := onOff(s.name, c.String(s.name))
			*s.target = &on
			keep(e)
		}
	}
	if c.IsSet("profile") {
		v := api.Profile(c.String("profile"))
		p.Profile = &v
		keep(checkProfile(string(v)))
	}
	if c.IsSet("hold") {
		d, adapts, e := parseHold(c.String("hold"))
		ns := d.Nanoseconds()
		if p.HoldNS = &ns; adapts { // a length alone is fixed, and a controller of before takes it
			p.HoldAdaptive = &adapts
		}
		keep(e)
	}
	for _, s := range []struct {
		name   string
		target **int
	}{{"max-bytes", &p.MaxBytes}, {"max-segments", &p.MaxSegments}} {
		if c.IsSet(s.name) {
			n, e := count(s.name, c.String(s.name))
			*s.target = &n
			keep(e)
		}
	}
	if c.IsSet("exclude-port") {
		ports, e := excludePorts(c.StringSlice("exclude-port"))
		p.ExcludePorts = &ports
		keep(e)
	}
	for _, s := range []struct {
		name        string
		rate, burst **uint64
	}{{"rate-tx", &p.RateTx, &p.BurstTx}, {"rate-rx", &p.RateRx, &p.BurstRx}} {
		if c.IsSet(s.name) {
			rate, burst, e := api.ParseRate(c.String(s.name))
			*s.rate, *s.burst = &rate, &burst
			if e != nil {
				keep(usagef("--%s %s", s.name, e))
			}
		}
	}
	if c.Bool("no-host") { // attach's
		off := false
		p.Host = &off
	}
	if c.IsSet("isolate") {
		on := c.Bool("isolate")
		p.Isolate = &on
	}
	return p, err
}

func onOff(name, v string) (bool, error) {
	switch v {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, usagef("--%s %s: not a switch: say on or off", name, v)
}

func checkProfile(v string) error {
	if slices.Contains(api.Profiles, api.Profile(v)) {
		return nil
	}
	return usagef("--profile %s: no such profile: say gro or rsc", v)
}

func parseHold(v string) (longest time.Duration, adapts bool, err error) {
	if longest, adapts, err = api.ParseHold(v); err != nil || longest < 0 {
		err = usagef("--hold %s: not a duration: say for example 50us, 1ms or 0, or adaptive, adaptive:1ms", v)
	}
	return longest, adapts, err
}

func count(name, v string) (int, error) {
	n, err := strconv.Atoi(v)
	switch {
	case errors.Is(err, strconv.ErrRange) && !strings.HasPrefix(v, "-"):
		return 0, usagef("--%s %s: too large a number: give a smaller one", name, v)
	case err != nil || n < 0:
		return 0, usagef("--%s %s: not a count: say a whole number", name, v)
	}
	return n, nil
}

// excludePorts never returns nil: an empty list is sent as one, it clears the list of the VM.
func excludePorts(values []string) ([]uint16, error) {
	ports := []uint16{}
	for _, v := range values {
		if v == "none" && len(values) == 1 {
			return ports, nil
		}
		n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 16)
		if err != nil || n == 0 {
			return ports, usagef("--exclude-port %s: not a TCP port: say 1 to 65535, or none alone", v)
		}
		ports = append(ports, uint16(n))
	}
	return ports, nil
}

// format checks -o and --json.
func format(c *cli.Context) (asJSON bool, err error) { return formatOr(c, "table") }

// formatOr is format for a verb that prints something other than a table.
func formatOr(c *cli.Context, plain string) (asJSON bool, err error) {
	v, on := c.String("output"), verbOf(c)
	switch {
	case v != plain && v != "json":
		return false, usagef("%s: --output %s: no such format: say %s or json", on, v, plain)
	case v == plain && c.Bool("json") && c.IsSet("output"):
		return false, usagef("%s: --json and --output %s: leave one of them out", on, v)
	}
	return v == "json" || c.Bool("json"), nil
}

// positionals checks the number of words and returns them. names are what the words mean, for the message.
func positionals(c *cli.Context, required, most int, names string) ([]string, error) {
	args := c.Args().Slice()
	verb := verbOf(c)
	usage := c.Command.UsageText
	switch {
	case len(args) < required:
		return nil, usagef("%s: %s missing: usage: %s", verb, names, usage)
	case len(args) > most && most == 0 && lookup(c.Command.Flags, "vm") != nil:
		return nil, usagef("%s: %s: takes no such word: name a VM with --vm: usage: %s", verb, args[0], usage)
	case len(args) > most && most == 0:
		return nil, usagef("%s: %s: takes no such word: see rscctl %s --help", verb, args[0], verb)
	case len(args) > most:
		return nil, usagef("%s: %s: one word too many: usage: %s", verb, args[most], usage)
	}
	for _, a := range args {
		if a == "" {
			return nil, usagef("%s: empty word: usage: %s", verb, usage)
		}
	}
	return args, nil
}

// verbOf is the verb as it is typed, such as "policy set".
func verbOf(c *cli.Context) string { return strings.TrimPrefix(c.Command.HelpName, c.App.Name+" ") }

// client returns the client for the socket the command line or the environment names.
func client(c *cli.Context) *api.Client { return api.NewClient(c.String("socket")) }

// on puts the verb in front of an error, unless the controller's words already begin with it.
func on(verb string, err error) error {
	if err == nil {
		return nil
	}
	noun, _, _ := strings.Cut(verb, " ")
	if text := err.Error(); strings.HasPrefix(text, verb+": ") || strings.HasPrefix(text, noun+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", verb, err)
}
