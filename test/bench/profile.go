package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rscctl/rscctl/controller/demo"
)

// profileTime is how long the profiled stream lasts: a sample is taken every 10 ms of processor time.
const profileTime = 3 * time.Second

// profile runs a stream with coalescing on through a controller that writes a profile of itself, in a topology of its own, and says which part
// of its time goes where. What is before and behind the stream is in it, and costs little.
func (b *bench) profile() error {
	dir, err := os.MkdirTemp("", "rscbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "cpu.pprof")
	if err := os.Setenv(profileEnv, path); err != nil {
		return err
	}
	s, err := demo.OpenStage(b.ctx, demo.StageOptions{Round: profileTime, Version: "bench"})
	_ = os.Unsetenv(profileEnv)
	if err != nil {
		return err
	}
	_, err = s.Round(demo.Setting{Coalesce: true, Flows: 8})
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	out, err := exec.CommandContext(b.ctx, "go", "tool", "pprof", "-top", "-nodecount=100000", "-nodefraction=0", path).Output()
	if err != nil {
		b.note("no profile: go tool pprof: %v", err)
		return b.ctx.Err()
	}
	b.result.Stages = stagesOf(string(out))
	return nil
}

// stageOf are the parts, by the beginnings of the functions' names; the first that fits counts.
var stageOf = []struct{ prefix, stage string }{
	{"github.com/rscctl/rscctl/flowtable/checksum.", "checksums (and the copy, where they are one pass)"},
	{"github.com/rscctl/rscctl/flowtable/packet.", "parsing"},
	{"github.com/rscctl/rscctl/flowtable.", "flow table: match, merge, seal"},
	{"github.com/rscctl/rscctl/vhost/vring.", "virtqueue"},
	{"github.com/rscctl/rscctl/vhost", "delivery into the guest's buffers"},
	{"github.com/rscctl/rscctl/controller/xsk.", "AF_XDP rings"},
	{"github.com/rscctl/rscctl/controller", "the worker's loop"},
	{"runtime.memmove", "copy into the guest's memory"},
	{"internal/runtime/syscall", "system calls: sleep and wake, AF_XDP, calls to the guest"},
	{"syscall.", "system calls: sleep and wake, AF_XDP, calls to the guest"},
	{"golang.org/x/sys/unix.", "system calls: sleep and wake, AF_XDP, calls to the guest"},
	{"runtime.", "Go's runtime"},
	{"", "other"},
}

// stagesOf reads the table of `go tool pprof -top`: flat, flat%, sum%, cum, cum%, name.
func stagesOf(top string) (stages []Stage) {
	percent := map[string]float64{}
	for line := range strings.Lines(top) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasSuffix(f[1], "%") || !strings.HasSuffix(f[4], "%") {
			continue
		}
		p, err := strconv.ParseFloat(strings.TrimSuffix(f[1], "%"), 64)
		if err != nil {
			continue
		}
		for _, s := range stageOf {
			if strings.HasPrefix(f[5], s.prefix) {
				percent[s.stage] += p
				break
			}
		}
	}
	seen := map[string]bool{}
	for _, s := range stageOf {
		if p := percent[s.stage]; p > 0 && !seen[s.stage] {
			stages = append(stages, Stage{Name: s.stage, Percent: p})
			seen[s.stage] = true
		}
	}
	return stages
}
