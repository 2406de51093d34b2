package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// microSet is benchmarks of one package that run in one process. Floors run in a process of their own: in one with the product the two
// push each other's memory out of the caches.
type microSet struct {
	pkg  string
	expr string
	all  bool // of the longer run alone
	root bool
}

var microSets = []microSet{
	{pkg: "controller/datapath", expr: "^BenchmarkSegmentToGuest$/^flows=(1|64|4096|4096,trains|64,cross)$"},
	{pkg: "controller/datapath", expr: "^BenchmarkCopyFloor$/^flows=(1|64|4096|4096,trains|64,cross)$"},
	{pkg: "controller/datapath", expr: "^BenchmarkTwoWorkers$"},
	{pkg: "flowtable", expr: "^BenchmarkCoalesce$/^flows=(1|64|1024)$"},
	{pkg: "flowtable", expr: "^BenchmarkCoalesceNoVerify/^flows=(1|64)$"},
	{pkg: "flowtable/checksum", expr: "^BenchmarkChecksum"},
	{pkg: "flowtable/packet", expr: "^BenchmarkParse"},
	{pkg: "vhost", expr: "^BenchmarkDeliver/buf=4096,"},
	{pkg: "vhost", expr: "^BenchmarkPoll"},
	{pkg: "bpf", expr: "^BenchmarkFrame/^steered$", root: true},
	{pkg: "controller/datapath", expr: "^Benchmark(SegmentToGuest|CopyFloor|Judge|GroupCopy)", all: true},
	{pkg: "flowtable", expr: "^Benchmark", all: true},
	{pkg: "vhost/vring", expr: "^Benchmark", all: true},
	{pkg: "controller/xsk", expr: "^Benchmark", all: true},
}

const (
	microTime  = "100ms" // of one benchmark in one repeat
	microCount = 5       // repeats at least: each costs little
)

// micro runs the benchmarks of the packages, all of them in turn and that again.
func (b *bench) micro() error {
	dir, err := os.MkdirTemp("", "rscbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	samples := map[[2]string]map[string][]float64{} // by package and name: figures by unit
	var order [][2]string
	built := map[string]string{}
	for i := range max(microCount, b.opt.repeats) {
		for _, m := range microSets {
			if m.all && !b.opt.all || m.root && b.opt.user != 0 {
				continue
			}
			if built[m.pkg] == "" {
				b.say("building the benchmarks of %s", m.pkg)
				if built[m.pkg], err = b.build(dir, m.pkg); err != nil {
					return err
				}
			}
			out, err := b.benchmarks(built[m.pkg], m)
			if err != nil {
				return err
			}
			found, err := parse(m.pkg, out)
			if err != nil {
				return err
			}
			if len(found) == 0 && i == 0 {
				b.note("%s has no benchmark %s", m.pkg, m.expr)
			}
			for _, f := range found {
				if samples[f.key] == nil {
					samples[f.key] = map[string][]float64{}
					order = append(order, f.key)
				}
				for unit, v := range f.values {
					samples[f.key][unit] = append(samples[f.key][unit], v)
				}
			}
		}
	}
	for _, key := range order {
		m := Micro{Package: key[0], Name: key[1], Values: map[string]Spread{}}
		for unit, v := range samples[key] {
			m.Values[unit] = spread(v)
		}
		b.result.Micro = append(b.result.Micro, m)
	}
	b.overFloor(samples)
	return b.ctx.Err()
}

// overFloor adds the ratios of the whole way to its floor, which ran right behind it, and of many flows to few.
func (b *bench) overFloor(samples map[[2]string]map[string][]float64) {
	const pkg, unit = "controller/datapath", "ns/seg"
	add := func(id, over, under string) {
		x, y := samples[[2]string{pkg, over}][unit], samples[[2]string{pkg, under}][unit]
		var v []float64
		for i := range min(len(x), len(y)) {
			v = append(v, x[i]/y[i])
		}
		if len(v) > 0 {
			b.result.Ratios = append(b.result.Ratios, Ratio{ID: id, Spread: spread(v)})
		}
	}
	for _, flows := range []string{"flows=1", "flows=64", "flows=4096", "flows=4096,trains", "flows=64,cross"} {
		add("segment-over-copy/"+flows, "SegmentToGuest/"+flows, "CopyFloor/"+flows)
	}
	add("segment-flows/4096,trains", "SegmentToGuest/flows=4096,trains", "SegmentToGuest/flows=64")
}

// build makes the test binary of a package.
func (b *bench) build(dir, pkg string) (string, error) {
	path := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	cmd := exec.CommandContext(b.ctx, "go", "test", "-c", "-o", path, "./"+pkg)
	cmd.Dir = b.opt.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: build: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// benchmarks runs a set once and returns what it printed. It runs in the package's folder, as go test does.
func (b *bench) benchmarks(binary string, m microSet, more ...string) ([]byte, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	args := append([]string{"-test.run", "^$", "-test.bench", m.expr, "-test.benchtime", microTime}, more...)
	cmd := exec.CommandContext(b.ctx, binary, args...)
	cmd.Dir = filepath.Join(b.opt.root, m.pkg)
	// An interrupted benchmark may clean up behind itself.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	if err != nil && b.ctx.Err() != nil {
		return nil, context.Cause(b.ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w\n%s", m.pkg, m.expr, err, out)
	}
	return out, nil
}

// measured is one line of a benchmark's output.
type measured struct {
	key    [2]string
	values map[string]float64
}

// parse reads the benchmark format. The number of processors at the end of a name says nothing here, and ns/op of a benchmark that
// gives its own unit is 0.
func parse(pkg string, out []byte) (found []measured, err error) {
	r := benchfmt.NewReader(bytes.NewReader(out), pkg)
	for r.Scan() {
		res, ok := r.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		name := res.Name.String()
		if i := strings.LastIndexByte(name, '-'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
			name = name[:i]
		}
		f := measured{key: [2]string{pkg, name}, values: map[string]float64{}}
		for _, v := range res.Values {
			unit, value := v.Unit, v.Value
			if v.OrigUnit != "" {
				unit, value = v.OrigUnit, v.OrigValue
			}
			if value > 0 {
				f.values[unit] = value
			}
		}
		found = append(found, f)
	}
	return found, r.Err()
}
