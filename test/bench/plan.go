package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/demo"
)

// way is what stands between the wire and the guest.
type way struct {
	name    string   // of rows
	host    *hostWay // nil: the controller
	ipv6    bool
	busy    time.Duration // the controller's workers poll on for so long
	million bool          // the controller counts a million flows of the VM, and has seen them
	gc      bool          // the controller's garbage is collected all the time
}

var (
	ours        = way{name: "rscctl"}
	oursIPv6    = way{name: "rscctl", ipv6: true}
	kernel      = way{name: "kernel", host: &hostWay{}}
	oursBusy    = way{name: "rscctl", busy: 50 * time.Microsecond}
	oursMillion = way{name: "rscctl", million: true}
	oursGC      = way{name: "rscctl", gc: true}
	testpmd     = way{name: "dpdk", host: &hostWay{DPDK: true}}
	kernelTuned = way{name: "kernel-tuned", host: &hostWay{FlushNS: 50_000, Defer: 2}}
)

// restless reports whether a way takes a processor also while nothing goes through it. It is ended behind each of its rows, or it would be
// measured in all that follow.
func (w way) restless() bool { return w.gc || w.host != nil && w.host.DPDK }

// planned is one row to measure.
type planned struct {
	way  way
	set  demo.Setting
	ping *pinging // not nil: requests instead of streams
}

// pinging is a series of requests, beside so many streams, and beside something that an operator does to the controller.
type pinging struct {
	streams int
	beside  string // of besides; "": nothing
}

// pingTime is how long a series lasts.
const pingTime = time.Second

// id names the row: direction/family/gro of the guest/flows/quota, rate or segments where there are/way or coalescing.
func (p planned) id() string {
	direction, family, gro := "receive", "ipv4", "off"
	if p.set.Transmit {
		direction = "transmit"
	}
	if p.way.ipv6 {
		family = "ipv6"
	}
	if p.set.GuestGRO {
		gro = "on"
	}
	if p.ping != nil {
		id := fmt.Sprintf("requests/%s/streams=%d%s", family, p.ping.streams, p.way.differs())
		if p.ping.beside != "" {
			id += "/beside=" + p.ping.beside
		}
		return id + "/" + p.kind()
	}
	id := fmt.Sprintf("%s/%s/gro=%s/flows=%d%s", direction, family, gro, max(1, p.set.Flows), p.way.differs())
	if p.set.Quota > 0 {
		id += fmt.Sprintf("/quota=%.1f", p.set.Quota)
	}
	if p.set.Gbps > 0 {
		id += fmt.Sprintf("/rate=%.0f", p.set.Gbps)
	}
	if p.set.MaxSegments > 0 {
		return fmt.Sprintf("%s/segments=%d", id, p.set.MaxSegments)
	}
	return id + "/" + p.kind()
}

// differs is how the controller of a way differs from one that is run by itself, for names of rows.
func (w way) differs() (s string) {
	if w.busy > 0 {
		s += fmt.Sprintf("/busy-poll=%v", w.busy)
	}
	if w.million {
		s += "/tracked=million"
	}
	if w.gc {
		s += "/gc"
	}
	return s
}

func (p planned) kind() string {
	switch {
	case p.way.host != nil:
		return p.way.name
	case p.set.Coalesce:
		return "on"
	}
	return "off"
}

// moderate is a rate in Gb/s that every way brings to the guest: what is lost there is not what the guest is too slow for.
const moderate = 2

// moderateFlows are the flow counts at that rate.
var moderateFlows = []int{1, 8, 64}

// quota is the part of a processor that the guest is held to.
const quota = 0.3

// Flow counts, and the bounds on segments of the curve.
var (
	flowCounts   = []int{1, 8, 64, 512}
	segmentSteps = []int{2, 4, 8, 10, 16, 22, 32, 45}
)

// plan lists the rows of one repeat that are wanted.
func plan(o options) []planned {
	return slices.DeleteFunc(allRows(o), func(p planned) bool { return !o.wants(p.id()) })
}

// allRows lists the rows of one repeat, what is compared side by side. Making the guest anew, for its own GRO, takes a moment, so all rows with it are together.
func allRows(o options) (rows []planned) {
	add := func(w way, s demo.Setting) { rows = append(rows, planned{way: w, set: s}) }
	both := func(w way, s demo.Setting) {
		add(w, s)
		s.Coalesce = true
		add(w, s)
	}
	if o.smallest {
		return []planned{{way: ours, set: demo.Setting{Coalesce: true}}}
	}
	for _, flows := range flowCounts {
		both(ours, demo.Setting{Flows: flows})
		if flows < 512 {
			add(kernel, demo.Setting{Flows: flows})
			add(kernelTuned, demo.Setting{Flows: flows})
		}
		if flows == 8 || flows == 64 {
			add(testpmd, demo.Setting{Flows: flows})
		}
	}
	for _, flows := range []int{1, 64} {
		both(ours, demo.Setting{Flows: flows, Quota: quota})
		add(kernelTuned, demo.Setting{Flows: flows, Quota: quota})
		add(ours, demo.Setting{Flows: flows, Transmit: true, Coalesce: true})
		add(kernel, demo.Setting{Flows: flows, Transmit: true})
	}
	for _, flows := range moderateFlows {
		both(ours, demo.Setting{Flows: flows, Gbps: moderate})
		add(kernel, demo.Setting{Flows: flows, Gbps: moderate})
	}
	for _, n := range segmentSteps {
		add(ours, demo.Setting{Flows: 8, Coalesce: true, MaxSegments: n})
	}
	pings := func(streams int) {
		for _, on := range []bool{false, true} {
			rows = append(rows, planned{way: ours, set: demo.Setting{Coalesce: on}, ping: &pinging{streams: streams}})
		}
	}
	pings(0)
	if o.all {
		pings(8)
		rows = append(rows, disturbed()...)
		for _, flows := range flowCounts {
			both(oursBusy, demo.Setting{Flows: flows})
		}
	}
	for _, flows := range flowCounts {
		both(ours, demo.Setting{Flows: flows, GuestGRO: true})
	}
	both(ours, demo.Setting{Flows: 8, GuestGRO: true, Quota: quota})
	add(kernelTuned, demo.Setting{Flows: 8, GuestGRO: true})
	if !o.all {
		both(oursIPv6, demo.Setting{Flows: 8})
		return rows
	}
	for _, flows := range flowCounts {
		both(oursIPv6, demo.Setting{Flows: flows})
		add(ours, demo.Setting{Flows: flows, Transmit: true})
		add(oursIPv6, demo.Setting{Flows: flows, Transmit: true, Coalesce: true})
	}
	return rows
}
