package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// workerSleeps returns how often the workers of a controller's process have gone to sleep, by thread: they are the threads that wait in ppoll(2).
func workerSleeps(pid int) map[string]string {
	ppoll := fmt.Sprintf("%d ", unix.SYS_PPOLL)
	out := map[string]string{}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		call, _ := os.ReadFile(filepath.Join(task, "syscall"))
		if !strings.HasPrefix(string(call), ppoll) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(task, "status"))
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		out[task], _, _ = strings.Cut(strings.TrimSpace(rest), "\n")
	}
	return out
}

// The controller looks at everything once a second. A worker without traffic sleeps through it, whatever kinds of VM it has.
func TestWorkersSleepThroughTheLooks(t *testing.T) {
	r, _ := oneTapVM(t, netnstest.Options{NoIPv6: true, Queues: 2})
	r.attach("user", macB)
	pid := r.worker() // asking wakes them
	r.eventually("no worker wakes for three looks", func() error {
		before := workerSleeps(pid)
		if len(before) != 2 {
			return fmt.Errorf("%d workers asleep, of 2", len(before))
		}
		time.Sleep(3200 * time.Millisecond)
		if after := workerSleeps(pid); fmt.Sprint(after) != fmt.Sprint(before) {
			return fmt.Errorf("sleeps %v, then %v", before, after)
		}
		return nil
	})
}

// A look asks by what is open: a controller that cannot open another descriptor goes on looking, and mends what it finds.
func TestALookOpensNothing(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.attach("user", macA)
	b := r.net.B
	way := netdev.WayName(b.Dev, b.Index)
	up := func() bool { return strings.Contains(b.Output(t, "ip", "link", "show", "dev", way), ",UP") }
	mended := func(when string) {
		t.Helper()
		b.Output(t, "ip", "link", "set", "dev", way, "down")
		r.eventually("switched on again "+when, func() error {
			if !up() {
				return fmt.Errorf("%s is off", way)
			}
			return nil
		})
	}
	mended("by a first look")
	pid := r.worker()
	var had unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &had); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	before := r.log.String()
	for range 3 {
		mended("by a look without a descriptor to spare")
	}
	time.Sleep(3200 * time.Millisecond)
	said := strings.TrimPrefix(r.log.String(), before)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &had, nil); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(said, "too many open files") || strings.Contains(said, "WARN") {
		t.Errorf("it says\n%s", said)
	}
	r.must("status")
}
