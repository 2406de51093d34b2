package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
