package main

import (
	"maps"
	"slices"
	"strings"
)

// conclude makes rows and ratios of the samples.
func (b *bench) conclude(rows []planned) {
	for _, p := range rows {
		id := p.id()
		if base, ok := p.undisturbed(); ok {
			b.added(id, base.id())
		}
		r := Row{ID: id, What: p.words(), Values: spreads(b.samples[id])}
		if len(r.Values) == 0 {
			r.Note = "not measured"
			if err := b.broken[p.way]; err != nil {
				r.Note += ": " + err.Error()
			}
		}
		b.result.Rows = append(b.result.Rows, r)
	}
	for _, id := range slices.Sorted(maps.Keys(b.samples)) {
		base, on := strings.CutSuffix(id, "/on")
		if !on {
			continue
		}
		b.compare("guest-cpu/"+base, base+"/off", id, "cpu_guest")
		b.compare("rate/"+base, id, base+"/off", "gbps")
		b.compare("p50/"+base, id, base+"/off", "p50_us")
		b.compare("p99/"+base, id, base+"/off", "p99_us")
		for _, k := range []string{"kernel", "kernel-tuned", "dpdk"} {
			b.compare("rate-over-"+k+"/"+base, id, base+"/"+k, "gbps")
			b.compare("guest-cpu-over-"+k+"/"+base, id, base+"/"+k, "cpu_guest")
			b.compare("all-cpu-over-"+k+"/"+base, id, base+"/"+k, "cpu_all")
		}
	}
}

// added notes how much larger a row's p99 is than another's of the same repeat, in microseconds.
func (b *bench) added(id, base string) {
	for i := range min(len(b.samples[id]), len(b.samples[base])) {
		if x, y := b.samples[id][i], b.samples[base][i]; x != nil && y != nil {
			x["p99_added_us"] = x["p99_us"] - y["p99_us"]
		}
	}
}

// words says a row in words.
func (p planned) words() string {
	switch {
	case p.ping != nil && p.ping.streams > 0:
		return "requests beside bulk data, coalescing " + p.kind()
	case p.ping != nil:
		return "requests alone, coalescing " + p.kind()
	case p.way.host != nil && p.way.host.DPDK:
		return "DPDK's testpmd between its AF_XDP and vhost drivers, a core of its own; it merges nothing"
	case p.way.host != nil && p.way.host.FlushNS > 0:
		return "the kernel's GRO (gro_flush_timeout 50 us, napi_defer_hard_irqs 2), bridge and tap"
	case p.way.host != nil:
		return "the kernel's GRO, bridge and tap"
	}
	return "rscctl, coalescing " + p.kind()
}

// compare adds the ratio of a figure of two rows, of those repeats that have both.
func (b *bench) compare(name, over, under, figure string) {
	var v []float64
	for i := range min(len(b.samples[over]), len(b.samples[under])) {
		x, y := b.samples[over][i][figure], b.samples[under][i][figure]
		if x > 0 && y > 0 {
			v = append(v, x/y)
		}
	}
	if len(v) > 0 {
		b.result.Ratios = append(b.result.Ratios, Ratio{ID: name, Spread: spread(v)})
	}
}

// spreads turns samples into spreads, figure by figure.
func spreads(samples []map[string]float64) map[string]Spread {
	all := map[string][]float64{}
	for _, s := range samples {
		for name, x := range s {
			all[name] = append(all[name], x)
		}
	}
	out := map[string]Spread{}
	for name, v := range all {
		out[name] = spread(v)
	}
	return out
}
