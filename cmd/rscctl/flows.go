package main

import (
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func flowsCommand(s streams) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "iface", Usage: "only flows of interface `I`"},
		&cli.StringFlag{Name: "vm", Usage: "only flows to VM `NAME`"},
		&cli.StringFlag{Name: "sort", Usage: "order by `KEY`: " + sortKeys(), Value: string(api.FlowSorts[0])},
		&cli.IntFlag{Name: "limit", Usage: "print at most `N` flows", DefaultText: "all"},
	}
	return &cli.Command{
		Name:  "flows",
		Usage: "list the TCP flows the XDP program counted",
		Description: `Rate is a flow's mean over its life, age the time since its last packet. Verdicts are the parser's word for each packet:
ok is TCP that may merge, every other word is why it may not.`,
		Flags:  append(append(flags, watchFlags()...), outputFlag(), socketFlag()),
		Action: func(c *cli.Context) error { return flows(c, s) },
	}
}

func flows(c *cli.Context, s streams) error {
	if _, err := positionals(c, 0, 0, ""); err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	q := api.FlowsQuery{Iface: c.String("iface"), VM: c.String("vm"), Sort: api.FlowSort(c.String("sort")), Limit: c.Int("limit")}
	if !slices.Contains(api.FlowSorts, q.Sort) {
		return usagef("flows: --sort %s: no such key: say one of %s", q.Sort, sortKeys())
	}
	if c.IsSet("limit") && q.Limit < 1 {
		return usagef("flows: --limit %d: not a number of flows: say 1 and above", q.Limit)
	}
	cl := client(c)
	return watch(c, s, func(w io.Writer) error {
		list, err := cl.Flows(c.Context, q)
		if err != nil {
			return on("flows", err)
		}
		if asJSON {
			return printJSON(w, list)
		}
		return printFlows(w, list)
	})
}

func sortKeys() string {
	words := make([]string, len(api.FlowSorts))
	for i, key := range api.FlowSorts {
		words[i] = string(key)
	}
	return strings.Join(words, ", ")
}

func printFlows(w io.Writer, list *api.Flows) error {
	p := newPrinter(w)
	p.row("VM", "WAY", "SRC", "DST", "PACKETS", "BYTES", "RATE", "AGE", "FLAGS", "VERDICTS")
	for i := range list.Flows {
		f := &list.Flows[i]
		p.row(f.VM, strings.ReplaceAll(string(f.Direction), "_", " "), endpoint(f.Src, f.SrcPort), endpoint(f.Dst, f.DstPort), grouped(f.Packets), size(f.Bytes),
			bitrate(f.BitsPerSec), duration(time.Duration(f.AgeNS)), orDash(strings.ToLower(strings.Join(f.TCPFlags, ","))),
			verdictText(f.Verdicts))
	}
	if hidden := list.Total - len(list.Flows); hidden > 0 {
		p.line("%d more flows", hidden)
	}
	if list.Total == 0 {
		p.line("no flows yet")
	}
	return p.flush()
}

func endpoint(addr string, port uint16) string {
	return net.JoinHostPort(addr, strconv.Itoa(int(port)))
}

// verdictText writes "ok" alone when nothing else was found, otherwise every verdict with its count.
func verdictText(v map[string]uint64) string {
	list := api.ByCount(v)
	if len(list) == 1 {
		return list[0].Name
	}
	words := make([]string, len(list))
	for i, e := range list {
		words[i] = e.Name + "=" + grouped(e.N)
	}
	return orDash(strings.Join(words, " "))
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
