package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/flowtable"
)

// discard is where a table that is only weighed would deliver.
type discard struct{}

func (discard) Deliver(*flowtable.Superframe) {}

// memory weighs a flow table with few and many slots, and the kernel's map of a million flows.
func (b *bench) memory() error {
	for _, slots := range []int{1, 1000, flowtable.DefaultSlots, flowtable.MaxSlots} {
		n, err := tableBytes(slots)
		if err != nil {
			return err
		}
		b.weighed(fmt.Sprintf("memory/slots=%d", slots), "a flow table of so many slots, one for each queue", n)
	}
	for _, flows := range []int{bpf.DefaultFlowEntries, 1_000_000} {
		id, what := fmt.Sprintf("memory/flows=%d", flows), "the kernel's map of so many flows of a VM, both directions together"
		n, err := flowMapBytes(flows)
		if err != nil {
			b.result.Memory = append(b.result.Memory, Row{ID: id, What: what, Note: "not measured: " + err.Error()})
			continue
		}
		b.weighed(id, what, n)
	}
	return b.ctx.Err()
}

func (b *bench) weighed(id, what string, bytes float64) {
	b.result.Memory = append(b.result.Memory, Row{ID: id, What: what, Values: map[string]Spread{"bytes": spread([]float64{bytes})}})
}

// tableBytes is what a new table takes of the heap: it takes nothing later.
func tableBytes(slots int) (float64, error) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	t, err := flowtable.New(flowtable.Config{Slots: slots, Ports: 1}, discard{})
	if err != nil {
		return 0, err
	}
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(t)
	return float64(after.TotalAlloc - before.TotalAlloc), nil
}

// flowMapBytes is what the kernel says that a map takes (memlock of /proc/self/fdinfo).
func flowMapBytes(flows int) (float64, error) {
	spec, err := bpf.NewFlowSpec(flows)
	if err != nil {
		return 0, err
	}
	f, _, err := bpf.OpenFlows("", spec)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	m, err := f.VM("bench")
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "memlock:"); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("the kernel does not tell the memory of a map")
}
