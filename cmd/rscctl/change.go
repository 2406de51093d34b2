package main

import (
	"strconv"

	"github.com/rscctl/rscctl/controller/api"
)

// change is something of two looks, and how many seconds are between them. was is nil where there is nothing to compare with.
type change[T any] struct {
	was, now *T
	seconds  float64
}

// grown is how much a counter has grown. One that has gone back began anew.
func (d change[T]) grown(of func(*T) uint64) (n uint64, ok bool) {
	if d.was == nil || d.seconds <= 0 || of(d.now) < of(d.was) {
		return 0, false
	}
	return of(d.now) - of(d.was), true
}

// delta writes how much, "-" for what is not known.
func (d change[T]) delta(of func(*T) uint64) string {
	n, ok := d.grown(of)
	if !ok {
		return "-"
	}
	return "+" + grouped(n)
}

// rate writes it a second.
func (d change[T]) rate(of func(*T) uint64) string {
	n, ok := d.grown(of)
	if !ok {
		return "-"
	}
	return scaled(float64(n)/d.seconds, "")
}

// since is what has become of a queue since the last look.
func (v statusView) since(nic string, q *api.Queue) queueChange {
	d := queueChange{change[api.Queue]{now: q, seconds: v.seconds}}
	if v.was == nil {
		return d
	}
	for i := range v.was.Interfaces {
		for n := range v.was.Interfaces[i].Queues {
			if old := &v.was.Interfaces[i].Queues[n]; v.was.Interfaces[i].Name == nic && old.ID == q.ID && old.Worker == api.WorkerRunning && q.Worker == api.WorkerRunning {
				d.was = old
			}
		}
	}
	return d
}

type queueChange struct{ change[api.Queue] }

// cpu is the worker's share of a processor.
func (d queueChange) cpu() string {
	n, ok := d.grown(func(q *api.Queue) uint64 { return q.CPUNS })
	if !ok {
		return "-"
	}
	return strconv.FormatFloat(float64(n)/d.seconds/1e7, 'f', 0, 64) + "%"
}
