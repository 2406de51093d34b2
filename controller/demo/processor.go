package demo

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// threads is the processor time that each of the kernel's own threads has used so far, by its number.
type threads map[string]time.Duration

// since is what they have used since another moment. A thread that has ended meanwhile is left out with all that it had used before, and one
// whose number is another's by now counts as new.
func (t threads) since(before threads) (total time.Duration) {
	for id, now := range t {
		if was := before[id]; was <= now {
			now -= was
		}
		total += now
	}
	return total
}

// kernelThreads are the kernel's own threads: ksoftirqd, which takes frames when interrupts come too often, vhost-net's, and what else the machine
// has. They are the children of process 2.
func kernelThreads() (threads, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("demo: kernel threads: %w", err)
	}
	all := threads{}
	for _, n := range names {
		if _, err := strconv.Atoi(n.Name()); err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + n.Name() + "/stat")
		if err != nil {
			continue // it ended
		}
		if used := kernelThread(string(b)); used > 0 {
			all[n.Name()] = used
		}
	}
	return all, nil
}

// kernelThread is the time of a process by its line of /proc/PID/stat (proc_pid_stat(5)), 0 when it is none of the kernel's threads.
func kernelThread(stat string) time.Duration {
	if parent, total := timeOf(stat); parent == "2" {
		return total
	}
	return 0
}

// processTime is the processor time of a process, 0 when there is none.
func processTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, total := timeOf(string(b))
	return total
}

// timeOf reads a line of /proc/PID/stat: the process's parent, and its processor time.
func timeOf(stat string) (parent string, total time.Duration) {
	_, rest, _ := strings.Cut(stat, ") ") // the name may hold blanks
	f := strings.Fields(rest)
	if len(f) < 13 {
		return "", 0
	}
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	return f[1], time.Duration(user+system) * (time.Second / userHz)
}

// sleeps is how often this process's threads have gone to sleep by themselves.
func sleeps() uint64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return uint64(u.Nvcsw)
}

// machineBusy is the time all processors together have not been idle, since boot (proc(5), /proc/stat).
func machineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("demo: processor time: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errors.New("demo: processor time: /proc/stat: unknown form")
	}
	var ticks uint64
	// user, nice, system, (idle, iowait,) irq, softirq. Time stolen by a hypervisor is not ours.
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("demo: processor time: /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHz), nil
}

// userHz is the unit of /proc/stat: fixed at 100 on every architecture we build for (sysconf(_SC_CLK_TCK)).
const userHz = 100
