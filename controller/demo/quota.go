package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// quota is a control group with a bound on processor time, for one process. In version 2 of control groups that is cpu.max, in version 1
// cpu.cfs_quota_us (admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst of the kernel's documentation).
type quota struct {
	dir    string // "" when it is closed
	parent string // where the process goes back to
	two    bool
	pid    int
}

// quotaPeriod is the time in which the bound holds. With the kernel's usual 100 ms a guest at three tenths would be silent for 70 ms at a time, and
// its senders would take that for loss.
const quotaPeriod = 10 * time.Millisecond

var errNoQuota = errors.New("no control group with a bound on processor time can be made here (controller cpu, at /sys/fs/cgroup)")

// makeQuota makes the group and puts the process into it.
func makeQuota(pid int) (*quota, error) {
	sweepQuotas()
	err := errNoQuota
	for _, q := range quotaPlaces() {
		q.pid = pid
		q.dir = filepath.Join(q.parent, fmt.Sprintf("%s%d", quotaPrefix, os.Getpid()))
		if failed := q.enter(); failed != nil {
			err = fmt.Errorf("%w: %w", errNoQuota, failed)
			continue
		}
		return &q, nil
	}
	return nil, err
}

// quotaPrefix is the beginning of a group's name; the number of the process that made it follows.
const quotaPrefix = "rscdemo-"

// sweepQuotas removes the groups of processes that ended without doing so. One that has processes stays.
func sweepQuotas() {
	for _, q := range quotaPlaces() {
		dirs, _ := filepath.Glob(filepath.Join(q.parent, quotaPrefix+"*"))
		for _, dir := range dirs {
			pid := strings.TrimPrefix(filepath.Base(dir), quotaPrefix)
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				_ = os.Remove(dir)
			}
		}
	}
}

// quotaPlaces lists the groups in which one may be made, none where nothing is known of any.
func quotaPlaces() []quota {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	own, _ := os.ReadFile("/proc/self/cgroup")
	return placesOf(string(mounts), string(own))
}

// placesOf reads them from the two files of the kernel: this process's own group, and the topmost that is seen from here. In version 2 a
// group with processes has no bounded groups under it, so that only the topmost of a host will do.
func placesOf(mounts, own string) (places []quota) {
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		f, fs := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(fs) < 3 {
			continue
		}
		two := fs[0] == "cgroup2"
		if !two && (fs[0] != "cgroup" || !hasWord(fs[2], "cpu")) {
			continue
		}
		for membership := range strings.Lines(own) {
			m := strings.SplitN(strings.TrimSpace(membership), ":", 3)
			if len(m) != 3 || two != (m[0] == "0" && m[1] == "") || !two && !hasWord(m[1], "cpu") {
				continue
			}
			if m[2] != "/" {
				places = append(places, quota{parent: filepath.Join(f[4], m[2]), two: two})
			}
		}
		places = append(places, quota{parent: f[4], two: two})
	}
	return places
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// enter makes the group and moves the process; when that fails nothing is left.
func (q *quota) enter() error {
	if err := os.Mkdir(q.dir, 0o755); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(q.dir, q.file()))
	if err == nil {
		err = os.WriteFile(filepath.Join(q.dir, "cgroup.procs"), []byte(strconv.Itoa(q.pid)), 0)
	}
	if err != nil {
		_ = os.Remove(q.dir)
	}
	return err
}

func (q *quota) file() string {
	if q.two {
		return "cpu.max"
	}
	return "cpu.cfs_quota_us"
}

// set bounds the process to so many processors, 0 to none.
func (q *quota) set(processors float64) error {
	period := quotaPeriod.Microseconds()
	bound := strconv.FormatInt(int64(processors*float64(period)), 10)
	write := func(file, value string) error {
		if err := os.WriteFile(filepath.Join(q.dir, file), []byte(value), 0); err != nil {
			return fmt.Errorf("quota: %w", err)
		}
		return nil
	}
	if q.two {
		if processors == 0 {
			bound = "max"
		}
		return write("cpu.max", fmt.Sprintf("%s %d", bound, period))
	}
	if processors == 0 {
		return write("cpu.cfs_quota_us", "-1")
	}
	return errors.Join(write("cpu.cfs_period_us", strconv.FormatInt(period, 10)), write("cpu.cfs_quota_us", bound))
}

// close takes the process out, or what is left of it, and removes the group. A nil quota has none.
func (q *quota) close() {
	if q == nil || q.dir == "" {
		return
	}
	for range 100 { // a process that is being killed is in it to its end
		_ = os.WriteFile(filepath.Join(q.parent, "cgroup.procs"), []byte(strconv.Itoa(q.pid)), 0)
		if err := os.Remove(q.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	q.dir = ""
}

// hold bounds the guest's processor time. It is this process's work, since this one outlives a parent that is killed.
func (c *control) hold(pid int, processors float64) error {
	if c.quota == nil {
		if processors == 0 {
			return nil
		}
		q, err := makeQuota(pid)
		if err != nil {
			return err
		}
		c.quota = q
	}
	return c.quota.set(processors)
}
