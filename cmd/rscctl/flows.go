package main

import (
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

// mostFlows are listed where nobody says how many.
const mostFlows = 50

func flowsCommand(s streams) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "iface", Usage: "only flows of interface `I`"},
		&cli.StringFlag{Name: "vm", Usage: "only flows to VM `NAME`"},
		&cli.StringFlag{Name: "sort", Usage: "order by `KEY`: " + listed(api.FlowSorts), Value: string(api.FlowSorts[0])},
		&cli.IntFlag{Name: "limit", Usage: "print at most `N` flows", DefaultText: strconv.Itoa(mostFlows) + ", in JSON all, with --watch what fits the window"},
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
		return usagef("flows: --sort %s: no such key: say one of %s", q.Sort, listed(api.FlowSorts))
	}
	if c.IsSet("limit") && q.Limit < 1 {
		return usagef("flows: --limit %d: not a number of flows: say 1 and above", q.Limit)
	}
	cl := client(c)
	limited := c.IsSet("limit") || asJSON
	var was flowsSeen
	return watch(c, s, func(w io.Writer) error {
		if !limited {
			q.Limit = fittingFlows(s.out, c.Bool("watch"))
		}
		list, err := cl.Flows(c.Context, q)
		switch {
		case err != nil:
			return on("flows", err)
		case asJSON:
			return printJSON(w, list)
		case !c.Bool("watch"):
			return printFlows(w, list)
		}
		now := seeFlows(list, time.Now())
		defer func() { was = now }()
		return printFlowChanges(w, list, was, now.at)
	})
}

// fittingFlows is how many flows to list: with --watch as many as the window has lines for, beside the time, the head and the foot.
func fittingFlows(out io.Writer, watched bool) int {
	const beside = 4
	if _, height, ok := window(out); ok && watched {
		return max(1, height-beside)
	}
	return mostFlows
}

// flowKey is what makes a flow the same one.
type flowKey struct {
	iface, vm, src, dst string
	direction           api.Direction
	srcPort, dstPort    uint16
}

// flowsSeen are the flows of a look.
type flowsSeen struct {
	at    time.Time
	flows map[flowKey]*api.Flow
}

func keyOf(f *api.Flow) flowKey {
	return flowKey{f.Iface, f.VM, f.Src, f.Dst, f.Direction, f.SrcPort, f.DstPort}
}

func seeFlows(list *api.Flows, at time.Time) flowsSeen {
	s := flowsSeen{at, map[flowKey]*api.Flow{}}
	for i := range list.Flows {
		s.flows[keyOf(&list.Flows[i])] = &list.Flows[i]
	}
	return s
}

// printFlowChanges lists flows with what became of them since the look before.
func printFlowChanges(w io.Writer, list *api.Flows, was flowsSeen, now time.Time) error {
	p := newPrinter(w)
	p.row("VM", "WAY", "SRC", "DST", "RATE NOW", "CHANGE", "PACKETS", "BYTES", "AGE", "FLAGS", "VERDICTS")
	for i := range list.Flows {
		f := &list.Flows[i]
		d := change[api.Flow]{was: was.flows[keyOf(f)], now: f, seconds: now.Sub(was.at).Seconds()}
		rate := "-"
		if n, ok := d.grown(func(f *api.Flow) uint64 { return f.Bytes }); ok {
			rate = bits(float64(n) / d.seconds)
		}
		p.row(f.VM, way(f), endpoint(f.Src, f.SrcPort), endpoint(f.Dst, f.DstPort), rate, d.delta(func(f *api.Flow) uint64 { return f.Packets }), grouped(f.Packets), size(f.Bytes),
			duration(time.Duration(f.AgeNS)), flagsText(f), verdictText(f.Verdicts))
	}
	return endFlows(p, list)
}

func way(f *api.Flow) string { return strings.ReplaceAll(string(f.Direction), "_", " ") }

func flagsText(f *api.Flow) string { return orDash(strings.ToLower(strings.Join(f.TCPFlags, ","))) }

// endFlows says what is not listed.
func endFlows(p *printer, list *api.Flows) error {
	if hidden := list.Total - len(list.Flows); hidden > 0 {
		p.line("%s: --limit %d lists all", plural(hidden, "more flow", "more flows"), list.Total)
	}
	if list.Evicted > 0 {
		p.line("%s gave way to others: 'rscctl run --flows' makes room for more", plural(int(min(list.Evicted, math.MaxInt)), "flow", "flows"))
	}
	for _, n := range list.Notes {
		p.text("", n)
	}
	if list.Total == 0 && len(list.Notes) == 0 {
		p.line("no flows yet")
	}
	return p.flush()
}

// listed names keys for a message.
func listed[K ~string](keys []K) string {
	words := make([]string, len(keys))
	for i, key := range keys {
		words[i] = string(key)
	}
	return strings.Join(words, ", ")
}

func printFlows(w io.Writer, list *api.Flows) error {
	p := newPrinter(w)
	p.row("VM", "WAY", "SRC", "DST", "PACKETS", "BYTES", "RATE", "AGE", "FLAGS", "VERDICTS")
	for i := range list.Flows {
		f := &list.Flows[i]
		p.row(f.VM, way(f), endpoint(f.Src, f.SrcPort), endpoint(f.Dst, f.DstPort), grouped(f.Packets), size(f.Bytes),
			bitrate(f.BitsPerSec), duration(time.Duration(f.AgeNS)), flagsText(f),
			verdictText(f.Verdicts))
	}
	return endFlows(p, list)
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
