package main

import (
	"io"
	"maps"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
)

// statsChange is what has become of all counters since the last look.
type statsChange struct{ change[api.Stats] }

// watchedCounters are those of a VM that a watch shows, whatever they count.
var watchedCounters = []struct {
	name string
	of   func(*api.VMStats) uint64
	text func(uint64) string
	rate func(perSec float64) string
}{
	{"received packets", func(v *api.VMStats) uint64 { return v.RxPackets }, grouped, nil},
	{"received bytes", func(v *api.VMStats) uint64 { return v.RxBytes }, size, bits},
	{"frames to the guest", func(v *api.VMStats) uint64 { return v.GuestFrames }, grouped, nil},
	{"superframes", func(v *api.VMStats) uint64 { return v.Superframes }, grouped, nil},
	{"merged packets", func(v *api.VMStats) uint64 { return v.MergedPackets }, grouped, nil},
	{"interrupts", func(v *api.VMStats) uint64 { return v.Interrupts }, grouped, nil},
	{"frames from the guest", sent, grouped, nil},
	{"bytes from the guest", func(v *api.VMStats) uint64 { return v.TxBytes }, size, bits},
	{"lost at the tap", func(v *api.VMStats) uint64 { return v.TapDropped }, grouped, nil},
}

// bits a second of bytes a second.
func bits(perSec float64) string { return bitrate(8 * perSec) }

// sent is what a VM sent, its own tap's too.
func sent(v *api.VMStats) uint64 { return v.TxFrames + total(v.TapOutcomes) }

func (v statsChange) print(w io.Writer) error {
	p := newPrinter(w)
	for i := range v.now.VMs {
		if i > 0 {
			p.line("")
		}
		v.printVM(p, &v.now.VMs[i])
	}
	if len(v.now.VMs) == 0 {
		p.line("no VM is attached")
	}
	if len(v.now.Queues) > 0 {
		p.line("")
		p.row("QUEUE", "RX FRAMES", "CHANGE", "RX/S", "TX/S", "LOST/S", "CPU", "HEALTH")
	}
	for _, name := range slices.Sorted(maps.Keys(v.now.Queues)) {
		q := v.now.Queues[name]
		d := queueChange{change[api.Queue]{now: &q, seconds: v.seconds}}
		if v.was != nil {
			if old, ok := v.was.Queues[name]; ok && old.Worker == q.Worker {
				d.was = &old
			}
		}
		rx := func(q *api.Queue) uint64 { return q.RxFrames }
		p.row(name, grouped(q.RxFrames), d.delta(rx), d.rate(rx), d.rate(func(q *api.Queue) uint64 { return q.TxFrames }), d.rate((*api.Queue).Lost), d.cpu(), p.health(q.Health))
	}
	return p.flush()
}

// printVM has a row for each counter that has ever counted, and for each reason.
func (v statsChange) printVM(p *printer, vm *api.VMStats) {
	d := change[api.VMStats]{now: vm, seconds: v.seconds}
	if v.was != nil {
		if i := slices.IndexFunc(v.was.VMs, func(old api.VMStats) bool { return old.VM == vm.VM && old.Iface == vm.Iface }); i >= 0 {
			d.was = &v.was.VMs[i]
		}
	}
	p.row(vm.VM+" on "+vm.Iface, "TOTAL", "CHANGE", "A SECOND")
	for _, c := range watchedCounters {
		if c.of(vm) == 0 {
			continue
		}
		delta, rate := "-", "-"
		if n, ok := d.grown(c.of); ok {
			delta, rate = "+"+c.text(n), scaled(float64(n)/d.seconds, "")
			if c.rate != nil {
				rate = c.rate(float64(n) / d.seconds)
			}
		}
		p.row("  "+c.name, c.text(c.of(vm)), delta, rate)
	}
	for _, m := range []struct {
		of     func(*api.VMStats) map[string]uint64
		what   string
		colour string
	}{
		{func(v *api.VMStats) map[string]uint64 { return v.Sealed }, "superframes: ", ""},
		{func(v *api.VMStats) map[string]uint64 { return v.Passed }, "alone: ", ""},
		{func(v *api.VMStats) map[string]uint64 { return v.Dropped }, "dropped: ", colourBad},
		{func(v *api.VMStats) map[string]uint64 { return v.TxDropped }, "sent, dropped: ", colourBad},
	} {
		for _, name := range slices.Sorted(maps.Keys(m.of(vm))) { // by name, so that no row moves
			one := func(v *api.VMStats) uint64 { return m.of(v)[name] }
			p.row("  "+m.what+name, p.paint(m.colour, grouped(one(vm))), d.delta(one), d.rate(one))
		}
	}
}
