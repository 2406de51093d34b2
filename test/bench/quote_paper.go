package main

import (
	"fmt"
	"strings"
)

// segmentBytes is the payload of a full segment with timestamps at an MTU of 1500.
const segmentBytes = 1448

// micros is the median of a unit of a benchmark, 0 when it is not there.
func (r *Result) micros(pkg, name, unit string) float64 {
	for _, m := range r.Micro {
		if m.Package == pkg && m.Name == name {
			return m.Values[unit].Median
		}
	}
	return 0
}

// stagesBlock is where a segment's time in the controller goes: the profile's parts of what the whole process took for a segment.
func stagesBlock(r *Result) string {
	per := values(r, "receive/ipv4/gro=off/flows=8/on")["cpu_controller"].Median * segmentBytes // seconds per 10^9 bytes: ns per byte
	var b strings.Builder
	b.WriteString("| part of the controller's process | % | ns a segment |\n|---|---|---|\n")
	for _, s := range r.Stages {
		fmt.Fprintf(&b, "| %s | %.0f | %.0f |\n", s.Name, s.Percent, per*s.Percent/100)
	}
	fmt.Fprintf(&b, "| together | | %.0f |\n", per)
	return b.String()
}

// capacityBlock is what a rate needs on paper. The first two columns of processors are what the whole path took here, the last one what the data
// path's own benchmarks say: XDP and a segment's way to the guest, without the kernel's copy into the socket.
func capacityBlock(r *Result) string {
	v, off := values(r, "receive/ipv4/gro=off/flows=64/on"), values(r, "receive/ipv4/gro=off/flows=64/off")
	own := r.micros("bpf", "Frame/steered", "ns/frame") + r.micros("controller/datapath", "SegmentToGuest/flows=64", "ns/seg")
	var b strings.Builder
	b.WriteString("| into guests | segments a second | processors, controller | guests, off | guests, on | data path alone |\n|---|---|---|---|---|---|\n")
	for _, gbit := range []float64{10, 25, 100} {
		gb := gbit / 8
		segments := gb * 1e9 / segmentBytes
		fmt.Fprintf(&b, "| %.0f Gb/s | %.2f million | %s | %s | %s | %s |\n", gbit, segments/1e6, figure(gb*v["cpu_controller"].Median),
			figure(gb*off["cpu_guest"].Median), figure(gb*v["cpu_guest"].Median), figure(segments*own/1e9))
	}
	return b.String()
}

// goal is a promise with its bound.
type goal struct {
	what, ratio string
	least       float64 // 0: none
	most        float64
}

// allCPU stands for what no ratio has: see allCPUOverKernel.
const allCPU = "all CPU over the kernel's"

var goals = []goal{
	{"guest CPU per byte, off over on, guest's GRO off", "guest-cpu/receive/ipv4/gro=off/flows=8", 2.4, 0},
	{"the same, guest's GRO on", "guest-cpu/receive/ipv4/gro=on/flows=8", 1.7, 0},
	{"rate, on over off, guest held to a quota", "rate/receive/ipv4/gro=off/flows=1/quota=0.3", 2.4, 0},
	{"rate over the tuned kernel's, 8 flows", "rate-over-kernel-tuned/receive/ipv4/gro=off/flows=8", 1, 0},
	{"all CPU per byte over the tuned kernel's, 8 flows", allCPU, 0, 1.2},
	{"requests, p50, on over off", "p50/requests/ipv4/streams=0", 0, 1.05},
	{"requests, p99, on over off", "p99/requests/ipv4/streams=0", 0, 1.05},
	{"segment to guest over a plain copy, 64 flows", "segment-over-copy/flows=64", 0, 1.5},
	{"the same, frames written by another core", "segment-over-copy/flows=64,cross", 0, 1.5},
	{"segment to guest, 4,096 flows over 64, in trains", "segment-flows/4096,trains", 0, 1.15},
}

func goalsBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| goal | bound | measured | met |\n|---|---|---|---|\n")
	for _, g := range goals {
		s := r.ratio(g.ratio)
		if g.ratio == allCPU {
			s = r.allCPUOverKernel()
		}
		bound, met := fmt.Sprintf("at least %s", figure(g.least)), s.Median >= g.least
		if g.most > 0 {
			bound, met = fmt.Sprintf("at most %s", figure(g.most)), s.Median <= g.most
		}
		answer := "no"
		switch {
		case s.N == 0:
			answer = "not measured"
		case met:
			answer = "yes"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", g.what, bound, both(s), answer)
	}
	return b.String()
}

// slowerBlock lists the rows whose rate with coalescing on is below that of off, by the median of the repeats.
func slowerBlock(r *Result) string {
	var b strings.Builder
	b.WriteString("| rows | rate, on / off | guest CPU, off / on |\n|---|---|---|\n")
	n := 0
	for _, x := range r.Ratios {
		base, ok := strings.CutPrefix(x.ID, "rate/")
		if !ok || x.Median >= 1 {
			continue
		}
		n++
		fmt.Fprintf(&b, "| %s | %s | %s |\n", base, both(x.Spread), both(r.ratio("guest-cpu/"+base)))
	}
	if n == 0 {
		b.WriteString("| none | | |\n")
	}
	return b.String()
}
