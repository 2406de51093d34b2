package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Result is a run. Figures of rows that failed or whose program is not here are missing, and the row's note says why.
type Result struct {
	Schema  int      `json:"schema"`
	Form    string   `json:"form"` // "bench", "bench-all" or "smallest"
	Commit  string   `json:"commit"`
	Changed bool     `json:"changed"` // files differ from the commit
	Machine Machine  `json:"machine"`
	Seconds float64  `json:"seconds"` // the run took
	Notes   []string `json:"notes,omitempty"`

	Micro  []Micro `json:"micro"`
	Rows   []Row   `json:"rows"`
	Ratios []Ratio `json:"ratios"`
	Stages []Stage `json:"stages"` // of the controller's process, by its profile
	Memory []Row   `json:"memory"`
}

// Machine is what was measured on, and how busy others kept it.
type Machine struct {
	Processors int        `json:"processors"`
	Model      string     `json:"model"`
	MemoryGB   float64    `json:"memory_gb"`
	Kernel     string     `json:"kernel"`
	Go         string     `json:"go"`
	Congestion string     `json:"congestion_control,omitempty"` // of the senders of streams
	LoadBefore [3]float64 `json:"load_before"`                  // averages of 1, 5, 15 minutes
	LoadAfter  [3]float64 `json:"load_after"`
}

// Spread is what the repeats of one figure were.
type Spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// Micro is one benchmark of a package.
type Micro struct {
	Package string            `json:"package"`
	Name    string            `json:"name"`   // without "Benchmark"
	Values  map[string]Spread `json:"values"` // by unit
}

// Row is one setting. CPU figures are seconds per 10^9 application bytes.
type Row struct {
	ID     string            `json:"id"`
	What   string            `json:"what"`
	Values map[string]Spread `json:"values,omitempty"`
	Note   string            `json:"note,omitempty"`
}

// Ratio compares two rows, or two benchmarks, repeat by repeat.
type Ratio struct {
	ID string `json:"id"`
	Spread
}

// Stage is a part of the controller's processor time.
type Stage struct {
	Name    string  `json:"name"`
	Percent float64 `json:"percent"`
}

const schema = 1

// spread sorts a copy of the figures. Of an even number the median is the mean of the two in the middle.
func spread(v []float64) Spread {
	if len(v) == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return Spread{Min: s[0], Median: (s[(n-1)/2] + s[n/2]) / 2, Max: s[n-1], N: n}
}

// row finds a row by its id, nil: it is not there.
func (r *Result) row(id string) *Row {
	for _, rows := range [][]Row{r.Rows, r.Memory} {
		if i := slices.IndexFunc(rows, func(x Row) bool { return x.ID == id }); i >= 0 {
			return &rows[i]
		}
	}
	return nil
}

// ratio finds a ratio by its id; one that is not there has N 0.
func (r *Result) ratio(id string) Spread {
	for _, x := range r.Ratios {
		if x.ID == id {
			return x.Spread
		}
	}
	return Spread{}
}

// quotient is that of two rows' medians of a figure, with the widest bounds that the repeats allow; N is 0 when one is not there.
func (r *Result) quotient(over, under, figure string) Spread {
	a, b := values(r, over)[figure], values(r, under)[figure]
	if a.N == 0 || b.N == 0 || b.Min <= 0 {
		return Spread{}
	}
	return Spread{Min: a.Min / b.Max, Median: a.Median / b.Median, Max: a.Max / b.Min, N: min(a.N, b.N)}
}

// allCPUOverKernel is all processor time for a byte over that of the tuned kernel's way, into a guest without GRO over 8 connections.
func (r *Result) allCPUOverKernel() Spread {
	const base = "receive/ipv4/gro=off/flows=8/"
	return r.quotient(base+"on", base+"kernel-tuned", "cpu_all")
}

func readResult(path string) (*Result, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var r Result
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("result: %s: %w", path, err)
	}
	if r.Schema != schema {
		return nil, fmt.Errorf("result: %s: schema %d, want %d", path, r.Schema, schema)
	}
	return &r, nil
}

// thisMachine describes the machine, without names.
func thisMachine() Machine {
	m := Machine{Processors: runtime.NumCPU(), Go: runtime.Version(), LoadBefore: load()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryGB = float64(uint64(info.Totalram)*uint64(info.Unit)>>20) / 1024
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.Model = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// load is the load averages of 1, 5 and 15 minutes, zero where they are not told.
func load() (l [3]float64) {
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(b), &l[0], &l[1], &l[2])
	}
	return l
}

func (o options) path(name string) string {
	if filepath.IsAbs(o.out) {
		return filepath.Join(o.out, name)
	}
	return filepath.Join(o.root, o.out, name)
}
