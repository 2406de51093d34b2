package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func statsCommand(s streams) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "vm", Usage: "only VM `NAME`", DefaultText: "every VM"},
	}
	return &cli.Command{
		Name:  "stats",
		Usage: "show every counter: packets, superframes, reasons, sizes and hold times",
		Description: `Every packet taken from the wire is in exactly one place: inside a superframe, passed alone under one reason, dropped
under one reason, or held at this moment. What is in none of these is shown as unexplained: a fault of ours, please report it.`,
		Flags:  append(append(flags, watchFlags()...), outputFlag(), socketFlag()),
		Action: func(c *cli.Context) error { return stats(c, s) },
	}
}

func stats(c *cli.Context, s streams) error {
	if _, err := positionals(c, 0, 0, ""); err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	cl := client(c)
	var was *api.Stats
	var asked time.Time
	return watch(c, s, func(w io.Writer) error {
		st, err := cl.Stats(c.Context, c.String("vm"))
		if err != nil {
			return on("stats", err)
		}
		switch {
		case asJSON:
			return printJSON(w, st)
		case !c.Bool("watch"):
			return printStats(w, st)
		}
		now := time.Now()
		v := statsChange{change[api.Stats]{was, st, now.Sub(asked).Seconds()}}
		was, asked = st, now
		return v.print(w)
	})
}

func printStats(w io.Writer, st *api.Stats) error {
	p := newPrinter(w)
	for i := range st.VMs {
		if i > 0 {
			p.line("")
		}
		printVM(p, &st.VMs[i])
	}
	if len(st.VMs) == 0 {
		p.line("no VM is attached")
	}
	if len(st.Queues) > 0 {
		p.line("")
		p.row("QUEUE", "RX FRAMES", "TX FRAMES", "FILL EMPTY", "RX FULL", "SHARE", "TX FULL", "HANGS", "HELD", "OPEN SLOTS")
		for _, name := range slices.Sorted(maps.Keys(st.Queues)) {
			q := st.Queues[name]
			p.row(name, grouped(q.RxFrames), grouped(q.TxFrames), grouped(q.RxFillEmpty), grouped(q.RxRingFull), grouped(q.RxShare), grouped(q.TxRingFull), grouped(q.Hangs), fmt.Sprintf("%d/%d", q.Held, q.Chunks), strconv.Itoa(q.OpenSlots))
		}
	}
	printReasons(p, "XDP OUTCOME", "FRAMES", st.Outcomes)
	printReasons(p, "BETWEEN HOST AND VMS", "FRAMES", st.HostOutcomes)
	return p.flush()
}

func printVM(p *printer, v *api.VMStats) {
	p.line("%s on %s", v.VM, v.Iface)
	p.row("  received", grouped(v.RxPackets)+" packets", size(v.RxBytes))
	p.row("  to the guest", grouped(v.GuestFrames)+" frames", size(v.GuestBytes))
	p.row("  superframes", grouped(v.Superframes), fmt.Sprintf("%s packets merged, %s of all, %s a frame",
		grouped(v.MergedPackets), percent(v.MergedPackets, v.RxPackets), ratio(v.MergedPackets, v.Superframes)))
	p.row("  passed alone", grouped(total(v.Passed)), percent(total(v.Passed), v.RxPackets))
	p.row("  dropped", p.bad(total(v.Dropped)), percent(total(v.Dropped), v.RxPackets))
	p.row("  held now", grouped(v.Held))
	if v.Unexplained != 0 {
		p.row("  unexplained", p.paint(colourBad, strconv.FormatInt(v.Unexplained, 10)), "packets: a fault of ours, please report it")
	}
	p.row("  interrupts", grouped(v.Interrupts), ratio(v.GuestFrames, v.Interrupts)+" frames each")
	p.row("  from other VMs", grouped(v.LocalFrames)+" frames")
	if v.TapOutcomes != nil { // what a VM sends through its own tap does not pass us
		p.row("  from the guest", grouped(total(v.TapOutcomes))+" frames", "counted on its tap, the kernel brings them on")
	} else {
		p.row("  from the guest", grouped(v.TxFrames)+" frames", size(v.TxBytes))
		p.row("  to the wire", grouped(v.TxWireFrames)+" frames", grouped(v.TxKernel)+" of the guest's left whole")
	}
	for _, e := range []struct {
		what string
		n    uint64
		why  string
	}{
		{"  to other VMs", v.TxWhole, "frames of the guest's that were handed over whole"},
		{"  to this host", v.ToHost, "packets, or to what is behind its bridges"},
		{"  from this host", v.FromHost, "packets, likewise"},
		{"  before the queue", v.RxShare, "frames dropped where it had its share of the room: they came faster than they were taken"},
		{"  late", v.LatePackets, "packets that were on their way when the policy went off"},
		{"  unsent", v.FeedUnsent, "frames that vhost-net had not sent when the feed was closed"},
		{"  lost at the tap", v.TapDropped, "frames of either path: the VM does not keep up"},
	} {
		if e.n > 0 {
			p.row(e.what, grouped(e.n), e.why)
		}
	}
	if v.StalledNS > 0 {
		p.row("  stalled", duration(time.Duration(v.StalledNS)), fmt.Sprintf("that workers slept because of the VM's memory; it rested %s", plural(int(v.Rests), "time", "times")))
	}
	printReasons(p, "SUPERFRAMES LEFT BECAUSE OF", "FRAMES", v.Sealed)
	printReasons(p, "PACKETS PASSED ALONE BECAUSE OF", "PACKETS", v.Passed)
	printReasons(p, "PACKETS DROPPED BECAUSE OF", "PACKETS", v.Dropped)
	printReasons(p, "GUEST FRAMES DROPPED BECAUSE OF", "FRAMES", v.TxDropped)
	printHistogram(p, "TCP FRAME SIZE", v.FrameBytes, func(n uint64) string { return grouped(n) + " B" })
	printHistogram(p, "HELD FOR", v.HoldNS, func(ns uint64) string { return duration(time.Duration(ns)) })
}

// bad writes a count that should be 0.
func (p *printer) bad(n uint64) string {
	if n == 0 {
		return "0"
	}
	return p.paint(colourBad, grouped(n))
}

// ratio writes a/b, "-" when there is no b.
func ratio(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(a)/float64(b))
}

// printReasons lists counters, largest first; nothing counted prints nothing.
func printReasons(p *printer, title, unit string, m map[string]uint64) {
	list := api.ByCount(m)
	if len(list) == 0 {
		return
	}
	all := total(m)
	p.line("")
	p.row("  "+title, unit, "SHARE")
	for _, e := range list {
		p.row("  "+e.Name, grouped(e.N), percent(e.N, all))
	}
}

const barWidth = 40

// printHistogram leaves out empty buckets at both ends.
func printHistogram(p *printer, title string, buckets []api.Bucket, text func(uint64) string) {
	var all, most uint64
	first, last := -1, -1
	for i, b := range buckets {
		if b.Count == 0 {
			continue
		}
		if first < 0 {
			first = i
		}
		last = i
		all, most = all+b.Count, max(most, b.Count)
	}
	if all == 0 {
		return
	}
	p.line("")
	p.row("  "+title, "FRAMES", "SHARE")
	for i := first; i <= last; i++ {
		b := buckets[i]
		p.row("  "+bound(buckets, i, text), grouped(b.Count), percent(b.Count, all),
			strings.Repeat("#", int((b.Count*barWidth+most-1)/most)))
	}
}

// bound names a bucket: Le 0 is the one without an upper bound.
func bound(buckets []api.Bucket, i int, text func(uint64) string) string {
	if buckets[i].Le == 0 && i > 0 {
		return "more"
	}
	return "up to " + text(buckets[i].Le)
}
