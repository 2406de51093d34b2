package controller

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of ParseCPUs.
var (
	ErrCPUs = errors.New("no CPU and no range of them")
	ErrCPU  = errors.New("not among those that this process may run on ('taskset -cp $$' lists the shell's)")
)

// ParseCPUs reads a list of CPUs as taskset and cpuset have it: numbers and ranges, as in "2,4-6". Each is once in the result, in
// rising order. Errors: ErrCPUs, ErrCPU.
func ParseCPUs(list string) ([]int, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("CPUs of this process: %w", err)
	}
	var cpus []int
	for _, part := range strings.Split(list, ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.ParseUint(from, 10, 12)
		last := first
		if err == nil && ranged {
			last, err = strconv.ParseUint(to, 10, 12)
		}
		if err != nil || last < first {
			return nil, fmt.Errorf("%q: %w: say a list like 2,4-6", part, ErrCPUs)
		}
		for cpu := int(first); cpu <= int(last); cpu++ {
			if !allowed.IsSet(cpu) {
				return nil, fmt.Errorf("CPU %d: %w", cpu, ErrCPU)
			}
			cpus = append(cpus, cpu)
		}
	}
	slices.Sort(cpus)
	return slices.Compact(cpus), nil
}

// tuning is how the workers of an uplink use the machine.
type tuning struct {
	place    *placement
	busyPoll time.Duration
}

func (c *Controller) tuning() tuning { return tuning{c.place, c.opt.BusyPoll} }

// placement gives each worker a CPU of its own, as far as there are enough. The zero value binds nobody. The controller's lock guards it.
type placement struct {
	cpus []int
	used []int // workers, by position in cpus
}

func newPlacement(cpus []int) *placement { return &placement{cpus, make([]int, len(cpus))} }

// take returns the CPUs for one worker more, none where it may run anywhere: the one of fewest workers.
func (p *placement) take() []int {
	if len(p.cpus) == 0 {
		return nil
	}
	least := 0
	for i, n := range p.used {
		if n < p.used[least] {
			least = i
		}
	}
	p.used[least]++
	return p.cpus[least : least+1 : least+1]
}

// give takes back what take returned.
func (p *placement) give(cpus []int) {
	for _, cpu := range cpus {
		p.used[slices.Index(p.cpus, cpu)]--
	}
}
