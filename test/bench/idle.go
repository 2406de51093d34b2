package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/demo"
)

// idleRow is the name of the row of a VM to which nothing comes.
const idleRow = "idle"

// idle measures what an attached VM costs while nothing comes: the whole process, Go's own monitor in it, and the threads that move frames.
func (b *bench) idle() error {
	s, err := b.stage(ours)
	if err != nil {
		return err
	}
	if err := s.Apply(demo.Setting{Coalesce: true}); err != nil {
		return err
	}
	const (
		settles = 3 * time.Second // what starting it left to do
		lasts   = 3 * time.Second
	)
	if err := sleep(b.ctx, settles); err != nil {
		return err
	}
	samples := make([]map[string]float64, b.opt.repeats)
	for i := range samples {
		before := workerSleeps(s.ControllerPID())
		cpu, wakeups, err := s.Idle(lasts)
		if err != nil {
			return err
		}
		samples[i] = map[string]float64{
			"cpu_percent": 100 * cpu.Seconds() / lasts.Seconds(), "wakeups_per_s": float64(wakeups) / lasts.Seconds(),
			"worker_wakeups_per_s": float64(workerSleeps(s.ControllerPID())-before) / lasts.Seconds(),
		}
	}
	b.result.Rows = append(b.result.Rows, Row{ID: idleRow, What: "the controller's process with one VM and no traffic", Values: spreads(samples)})
	return nil
}

// workerSleeps is how often the workers of a controller's process have gone to sleep: they are the threads that wait in ppoll(2).
func workerSleeps(pid int) (total int) {
	call := fmt.Sprintf("%d ", unix.SYS_PPOLL)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		if b, _ := os.ReadFile(filepath.Join(task, "syscall")); !strings.HasPrefix(string(b), call) {
			continue
		}
		status, _ := os.ReadFile(filepath.Join(task, "status"))
		_, rest, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		n := 0
		_, _ = fmt.Sscan(rest, &n)
		total += n
	}
	return total
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
