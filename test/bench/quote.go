package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Documents that quote, with blocks between the comments <!-- bench:NAME --> and <!-- /bench -->.
var quoting = []string{"README.md", "docs/performance.md"}

var blockForm = regexp.MustCompile(`(?s)(<!-- bench:([a-z-]+) -->\n)(.*?)(<!-- /bench -->)`)

// quoteAll writes the result's figures into the documents.
func quoteAll(root string, r *Result) error {
	for _, name := range quoting {
		path := filepath.Join(root, name)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text, err := quoted(string(b), r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if text != string(b) {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// quoted is a document with its blocks made of the result.
func quoted(text string, r *Result) (string, error) {
	blocks := blocksOf(r)
	var err error
	text = blockForm.ReplaceAllStringFunc(text, func(s string) string {
		m := blockForm.FindStringSubmatch(s)
		content, ok := blocks[m[2]]
		if !ok {
			err = fmt.Errorf("no block %q", m[2])
		}
		return m[1] + content + m[4]
	})
	return text, err
}

// blocksOf are all blocks that a document may have.
func blocksOf(r *Result) map[string]string {
	return map[string]string{
		"readme": readmeBlock(r), "machine": machineText(r) + "\n", "stages": stagesBlock(r), "micro": microTable(r, ""),
		"receive": receiveBlock(r, "off"), "receive-guest-gro": receiveBlock(r, "on"), "quota": quotaBlock(r), "moderate": moderateBlock(r), "curve": curveBlock(r),
		"transmit": transmitBlock(r), "requests": requestsBlock(r), "idle": idleBlock(r), "memory": memoryBlock(r), "capacity": capacityBlock(r),
		"goals": goalsBlock(r), "slower": slowerBlock(r), "peers": peersBlock(r),
	}
}

func ratioLine(r *Result, what, id string) string { return line(what, r.ratio(id)) }

func line(what string, s Spread) string {
	if s.N == 0 {
		return fmt.Sprintf("| %s | not measured | |\n", what)
	}
	return fmt.Sprintf("| %s | %s | %s |\n", what, figure(s.Median), fromTo(s))
}

func readmeBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| of | median | from, to |\n|---|---|---|\n")
	b.WriteString(ratioLine(r, "a guest's CPU time per byte, coalescing off over on, 8 connections", "guest-cpu/receive/ipv4/gro=off/flows=8"))
	b.WriteString(ratioLine(r, "the same with the guest's own GRO on, as guests come", "guest-cpu/receive/ipv4/gro=on/flows=8"))
	b.WriteString(ratioLine(r, "the rate, on over off, into a guest that is held to 0.3 processors", "rate/receive/ipv4/gro=off/flows=1/quota=0.3"))
	b.WriteString(ratioLine(r, "the rate, on over off, where sender, controller and guest share two processors", "rate/receive/ipv4/gro=off/flows=8"))
	if x := r.row("receive/ipv4/gro=off/flows=8/on"); x != nil {
		s := x.Values["segments"]
		fmt.Fprintf(&b, "| segments in a frame that the guest gets | %s | %s |\n", figure(s.Median), fromTo(s))
	}
	b.WriteString(ratioLine(r, "the rate over that of the kernel's own GRO, bridge and tap, tuned, into the same guest", "rate-over-kernel-tuned/receive/ipv4/gro=off/flows=8"))
	b.WriteString(line("all CPU time per byte, from the sender to the application, over that one's", r.allCPUOverKernel()))
	b.WriteString(ratioLine(r, "a request's time, on over off, median of the requests", "p50/requests/ipv4/streams=0"))
	b.WriteString(ratioLine(r, "a segment's whole way to the guest, over a plain copy of its bytes, 64 flows", "segment-over-copy/flows=64"))
	fmt.Fprintf(&b, "\nMeasured by `sudo make bench`: %s\n", machineText(r))
	return b.String()
}

func receiveBlock(r *Result, gro string) string {
	var b strings.Builder
	b.WriteString("| flows | off, Gb/s | on, Gb/s | kernel tuned, Gb/s | guest s/GB, off | on | kernel tuned | off / on | all s/GB, on | kernel tuned | segments a frame |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, flows := range flowCounts {
		base := fmt.Sprintf("receive/ipv4/gro=%s/flows=%d", gro, flows)
		off, on, k := values(r, base+"/off"), values(r, base+"/on"), values(r, base+"/kernel-tuned")
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", flows, both(off["gbps"]), both(on["gbps"]), both(k["gbps"]),
			both(off["cpu_guest"]), both(on["cpu_guest"]), both(k["cpu_guest"]), both(r.ratio("guest-cpu/"+base)), both(on["cpu_all"]), both(k["cpu_all"]), both(on["segments"]))
	}
	return b.String()
}

// values of a row, nil when it is not there.
func values(r *Result, id string) map[string]Spread {
	if x := r.row(id); x != nil {
		return x.Values
	}
	return nil
}

func quotaBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| flows, guest's GRO | off, Gb/s | on, Gb/s | on / off | kernel tuned, Gb/s |\n|---|---|---|---|---|\n")
	for _, x := range []struct {
		gro   string
		flows int
	}{{"off", 1}, {"off", 64}, {"on", 8}} {
		base := fmt.Sprintf("receive/ipv4/gro=%s/flows=%d/quota=%.1f", x.gro, x.flows, quota)
		off, on, k := values(r, base+"/off"), values(r, base+"/on"), values(r, base+"/kernel-tuned")
		fmt.Fprintf(&b, "| %d, %s | %s | %s | %s | %s |\n", x.flows, x.gro, both(off["gbps"]), both(on["gbps"]), both(r.ratio("rate/"+base)), both(k["gbps"]))
	}
	return b.String()
}

// moderateBlock is what is lost, and what it costs, at a rate that the guest can take.
func moderateBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| flows | Gb/s, on | kernel | retransmits a GB, off | on | kernel | all s/GB, off | on | kernel | segments a frame |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, flows := range moderateFlows {
		base := fmt.Sprintf("receive/ipv4/gro=off/flows=%d/rate=%d", flows, moderate)
		off, on, k := values(r, base+"/off"), values(r, base+"/on"), values(r, base+"/kernel")
		fmt.Fprintf(&b, "| %d |", flows)
		for _, x := range []struct {
			v    map[string]Spread
			name string
		}{
			{on, "gbps"}, {k, "gbps"}, {off, "retransmits_per_gb"}, {on, "retransmits_per_gb"}, {k, "retransmits_per_gb"},
			{off, "cpu_all"}, {on, "cpu_all"}, {k, "cpu_all"}, {on, "segments"},
		} {
			fmt.Fprintf(&b, " %s |", both(x.v[x.name]))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// curveBlock shows how much of the gain a frame of so many segments brings: none is one segment, all is the most.
func curveBlock(r *Result) string {
	id := func(n int) string { return fmt.Sprintf("receive/ipv4/gro=off/flows=8/segments=%d", n) }
	one := values(r, "receive/ipv4/gro=off/flows=8/off")
	worst, best := one["cpu_guest"].Median, values(r, id(segmentSteps[len(segmentSteps)-1]))["cpu_guest"].Median
	var b strings.Builder
	b.WriteString("| at most | segments a frame, measured | guest s/GB | of the gain |\n|---|---|---|---|\n")
	fmt.Fprintf(&b, "| off | %s | %s | 0 %% |\n", both(one["segments"]), both(one["cpu_guest"]))
	for _, n := range segmentSteps {
		v := values(r, id(n))
		gain := ""
		if worst > best && v["cpu_guest"].N > 0 {
			gain = fmt.Sprintf("%.0f %%", 100*(worst-v["cpu_guest"].Median)/(worst-best))
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", n, both(v["segments"]), both(v["cpu_guest"]), gain)
	}
	return b.String()
}

func transmitBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| flows | rscctl, Gb/s | kernel, Gb/s | all s/GB, rscctl | kernel |\n|---|---|---|---|---|\n")
	for _, flows := range []int{1, 64} {
		base := fmt.Sprintf("transmit/ipv4/gro=off/flows=%d", flows)
		on, k := values(r, base+"/on"), values(r, base+"/kernel")
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", flows, both(on["gbps"]), both(k["gbps"]), both(on["cpu_all"]), both(k["cpu_all"]))
	}
	return b.String()
}

func requestsBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| coalescing | p50, us | p99, us | p99.9, us |\n|---|---|---|---|\n")
	for _, k := range []string{"off", "on"} {
		fmt.Fprintf(&b, "| %s |%s\n", k, cells(values(r, "requests/ipv4/streams=0/"+k), "p50_us", "p99_us", "p999_us"))
	}
	return b.String()
}

func idleBlock(r *Result) string {
	v := values(r, idleRow)
	return fmt.Sprintf("| the controller's process, one VM, no traffic | |\n|---|---|\n| %% of a processor | %s |\n| wake-ups a second, of the thread that moves frames | %s |\n| of all its threads, Go's own monitor and a look at everything once a second included | %s |\n",
		both(v["cpu_percent"]), both(v["worker_wakeups_per_s"]), both(v["wakeups_per_s"]))
}

func memoryBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| of | MiB |\n|---|---|\n")
	for _, x := range r.Memory {
		size := x.Note
		if s := x.Values["bytes"]; s.N > 0 {
			size = fmt.Sprintf("%.3f", s.Median/(1<<20))
		}
		_, n, _ := strings.Cut(x.ID, "/")
		fmt.Fprintf(&b, "| %s: %s | %s |\n", n, x.What, size)
	}
	return b.String()
}

// peersBlock compares with programs that are not the kernel's, or says why not.
func peersBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| peer | its rate, Gb/s | its CPU, all, s/GB | our rate over its | our CPU, all, over its |\n|---|---|---|---|---|\n")
	for _, flows := range []int{8, 64} {
		base := fmt.Sprintf("receive/ipv4/gro=off/flows=%d", flows)
		x := r.row(base + "/" + testpmd.name)
		switch {
		case x == nil:
		case x.Note != "":
			fmt.Fprintf(&b, "| %s, %d flows | %s | | | |\n", x.What, flows, x.Note)
		default:
			fmt.Fprintf(&b, "| %s, %d flows | %s | %s | %s | %s |\n", x.What, flows, both(x.Values["gbps"]), both(x.Values["cpu_all"]),
				both(r.ratio("rate-over-dpdk/"+base)), both(r.ratio("all-cpu-over-dpdk/"+base)))
		}
	}
	for _, x := range r.Rows {
		if strings.HasPrefix(x.ID, "peer/") {
			fmt.Fprintf(&b, "| %s | %s | | | |\n", x.What, x.Note)
		}
	}
	return b.String()
}
