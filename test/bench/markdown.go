package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// write puts the result into the folder: JSON, the same for people, and plots of it.
func (b *bench) write() error {
	if err := os.MkdirAll(b.opt.path(""), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(b.result, "", " ")
	if err != nil {
		return err
	}
	name := b.opt.path(b.result.Form + ".json")
	for path, content := range map[string][]byte{name: append(text, '\n'), b.opt.path(b.result.Form + ".md"): []byte(page(b.result))} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	if b.opt.smallest {
		return nil
	}
	full, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	// The program that draws is not built with what a user builds.
	cmd := exec.CommandContext(b.ctx, "go", "-C", filepath.Join(b.opt.root, "tools"), "run", "./benchplot", full)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.say("no plots: %v: %s", err, out)
	}
	b.say("written: %s", name)
	return nil
}

// ratioTable are the ratios of figures.
func ratioTable(r *Result) string {
	var b strings.Builder
	b.WriteString("| of | median | from, to |\n|---|---|---|\n")
	for _, x := range r.Ratios {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", x.ID, figure(x.Median), fromTo(x.Spread))
	}
	return b.String()
}

// pathTable are the rows of streams.
func pathTable(r *Result) string {
	var b strings.Builder
	b.WriteString("| row | Gb/s | sender | kernel | controller | guest | segments a frame | retransmits a GB | drops | wake-ups a second |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, x := range r.Rows {
		if _, ok := x.Values["gbps"]; ok {
			fmt.Fprintf(&b, "| %s |%s\n", x.ID, cells(x.Values, "gbps", "cpu_sender", "cpu_kernel", "cpu_controller", "cpu_guest", "segments", "retransmits_per_gb", "drops", "wakeups_per_s"))
		} else if x.Note != "" {
			fmt.Fprintf(&b, "| %s | %s | | | | | | | | |\n", x.ID, x.Note)
		}
	}
	return b.String()
}

// otherTable are the rows that are no streams.
func otherTable(r *Result) string {
	var b strings.Builder
	b.WriteString("| row | what |\n|---|---|\n")
	for _, x := range slices.Concat(r.Rows, r.Memory) {
		if _, ok := x.Values["gbps"]; !ok && x.Note == "" || strings.HasPrefix(x.ID, "memory") && x.Note != "" {
			fmt.Fprintf(&b, "| %s | %s%s |\n", x.ID, list(x.Values), x.Note)
		}
	}
	return b.String()
}

// page is the whole result in Markdown.
func page(r *Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What was measured\n\n%s\n", machineText(r))
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n- %s", n)
	}
	if len(r.Notes) > 0 {
		b.WriteString("\n")
	}
	b.WriteString("\nA figure is a median, with the smallest and the largest of the repeats. CPU is seconds per 10^9 application bytes: of the sender's process, of the kernel's\nown threads, of the controller's process, of the guest's.\n")
	b.WriteString("\n## Ratios\n\n" + ratioTable(r))
	b.WriteString("\n## The whole path\n\n" + pathTable(r))
	b.WriteString("\n## Requests, and nothing\n\n" + otherTable(r))
	b.WriteString("\n## Benchmarks of the packages\n\n" + microTable(r, ""))
	if len(r.Stages) > 0 {
		b.WriteString("\n## The controller's time, by its profile\n\n" + stageTable(r))
	}
	return b.String()
}

func machineText(r *Result) string {
	changed := ""
	if r.Changed {
		changed = ", with changes"
	}
	m, congestion := r.Machine, ""
	if m.Congestion != "" {
		congestion = ", TCP " + m.Congestion
	}
	return fmt.Sprintf("%d processors (%s), %.0f GB, Linux %s, %s%s; commit %s%s; load average %.1f before and %.1f behind; the run took %.0f s.",
		m.Processors, m.Model, m.MemoryGB, m.Kernel, m.Go, congestion, r.Commit, changed, m.LoadBefore[0], m.LoadAfter[0], r.Seconds)
}

// figure writes a number with as many digits as one looks at.
func figure(v float64) string {
	switch {
	case v >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func fromTo(s Spread) string { return figure(s.Min) + ", " + figure(s.Max) }

// both is a spread in one cell.
func both(s Spread) string {
	if s.N == 0 {
		return ""
	}
	if s.Min == s.Max {
		return figure(s.Median)
	}
	return figure(s.Median) + " (" + fromTo(s) + ")"
}

func cells(v map[string]Spread, names ...string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, " %s |", both(v[n]))
	}
	return b.String()
}

func list(v map[string]Spread) string {
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(v)) {
		parts = append(parts, n+" "+both(v[n]))
	}
	return strings.Join(parts, "; ")
}

// microTable lists the benchmarks whose package and name begin so.
func microTable(r *Result, prefix string) string {
	var b strings.Builder
	b.WriteString("| benchmark | figures |\n|---|---|\n")
	for _, m := range r.Micro {
		if name := m.Package + " " + m.Name; strings.HasPrefix(name, prefix) {
			fmt.Fprintf(&b, "| %s | %s |\n", name, list(m.Values))
		}
	}
	return b.String()
}

func stageTable(r *Result) string {
	var b strings.Builder
	b.WriteString("| part | % |\n|---|---|\n")
	for _, s := range r.Stages {
		fmt.Fprintf(&b, "| %s | %.0f |\n", s.Name, s.Percent)
	}
	return b.String()
}
