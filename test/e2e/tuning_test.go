package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// Workers that are bound to a CPU and poll their NIC carry a transfer, say how they run, and sleep when nothing comes.
func TestWorkersPollOnTheirCPUsAndSleepWhenIdle(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true, Queues: 2})
	r.stop()
	r.flags = []string{"--cpus", "0", "--busy-poll", "200us"}
	r.start()
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	netnstest.Bulk(t, g.side, r.net.A, 8<<20, false, time.Minute)
	var st api.Status
	r.json(&st, "status")
	nic := st.Interfaces[0]
	if nic.BusyPollNS != (200 * time.Microsecond).Nanoseconds() {
		t.Errorf("busy_poll_ns %d", nic.BusyPollNS)
	}
	for _, q := range nic.Queues {
		if fmt.Sprint(q.CPUs) != "[0]" {
			t.Errorf("queue %d on CPUs %v", q.ID, q.CPUs)
		}
	}
	r.eventually("the workers sleep", func() error {
		if n := len(workerSleeps(r.worker())); n != 2 {
			return fmt.Errorf("%d of 2: %w", n, errNotYet)
		}
		return nil
	})
}
