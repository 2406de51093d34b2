package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/tapvm"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// timeouts is how many retransmission timeouts the TCP of a namespace has had.
func timeouts(t *testing.T, s *netnstest.Side) (n int) {
	t.Helper()
	s.Do(t, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		for i, name := range strings.Fields(lines[0]) {
			if name == "TCPTimeouts" {
				n, err = strconv.Atoi(strings.Fields(lines[1])[i])
				return err
			}
		}
		return fmt.Errorf("no TCPTimeouts in %q", lines[0])
	})
	return n
}

// A controller that is stopped for 3 s under load costs a VM on a tap a moment: XDP notices that nobody reads, and the kernel brings the
// VM its frames until the controller is back. What comes for a VM that has no other way waits.
func TestAStoppedControllerFailsOpen(t *testing.T) {
	r, vm := oneTapVM(t, netnstest.Options{})
	user := r.boot(stackguest.Config{Socket: r.attach("user", macB), MAC: mac(t, macB)}, "10.77.0.11/24")
	netnstest.Bulk(t, r.net.A, user.side, 1<<20, false, time.Minute)
	stop := make(chan struct{})
	done := r.transfers(vm.Guest, stop)
	r.eventually("the load is merged", func() error {
		var st api.Stats
		if r.json(&st, "stats", "--vm", "vm0"); st.VMs[0].Superframes < 100 {
			return errNotYet
		}
		return nil
	})

	const waiting = 100 // frames for the other VM
	in, before := r.net.A.Injector(t), r.reached("user")
	var slow int
	var bytes uint64
	var first, longest time.Duration
	r.frozen(func() {
		start, from := time.Now(), vm.Stats().Bytes
		slow = -timeouts(t, r.net.A)
		seen, last := from, start
		for sent := 0; time.Since(start) < 3*time.Second; time.Sleep(time.Millisecond) {
			now := vm.Stats().Bytes
			if now-seen > 64<<10 { // more than what the tap's queue had
				if first == 0 {
					first = time.Since(start)
				}
				longest = max(longest, time.Since(last))
				seen, last = now, time.Now()
			}
			if sent < waiting {
				sent++
				if err := in.Send(probe(user.side.MAC, r.net.A.MAC, "x")); err != nil {
					t.Error(err)
				}
			}
		}
		longest = max(longest, time.Since(last))
		bytes, slow = seen-from, slow+timeouts(t, r.net.A)
	})
	t.Logf("%d MB while the controller stood still, the first after %v, the longest silence %v, %d retransmission timeouts", bytes>>20, first, longest, slow)
	if bytes < 256<<10 {
		t.Errorf("%d bytes reached the VM while the controller stood still", bytes)
	}
	if slow > 1 {
		t.Errorf("%d retransmission timeouts, want at most one", slow)
	}

	var st api.Stats
	var back api.Stats
	r.json(&back, "stats")
	r.eventually("what waited has arrived, and the load comes by the controller again", func() error {
		if r.json(&st, "stats"); st.VMs[1].RxPackets == back.VMs[1].RxPackets || st.VMs[0].GuestFrames < before+waiting {
			return fmt.Errorf("%d packets, %d of %d frames", st.VMs[1].RxPackets-back.VMs[1].RxPackets, st.VMs[0].GuestFrames-before, waiting)
		}
		return nil
	})
	if st.VMs[0].VM != "user" || st.VMs[1].VM != "vm0" {
		t.Fatalf("VMs %q and %q", st.VMs[0].VM, st.VMs[1].VM)
	}
	netnstest.Bulk(t, r.net.A, user.side, 1<<20, false, time.Minute)
	st = r.whole(stop, done)
	if st.VMs[0].LatePackets != 0 || st.VMs[1].LatePackets == 0 {
		t.Errorf("late: %d of the VM that has no other way, %d of the one on the tap", st.VMs[0].LatePackets, st.VMs[1].LatePackets)
	}
	if st.Outcomes["pass_hang"] == 0 || st.Outcomes["drop_hang"] != 0 {
		t.Errorf("outcomes %v", st.Outcomes)
	}
	r.eventually("status and the log say it", func() error {
		var now api.Status
		r.json(&now, "status")
		q := now.Interfaces[0].Queues[0]
		if said := strings.Count(r.log.String(), "VMs on taps had the kernel's path"); q.Hangs == 0 || q.HangPassed < st.Outcomes["pass_hang"] || said == 0 {
			return fmt.Errorf("%d hangs, %d frames; said %d times", q.Hangs, q.HangPassed, said)
		}
		return nil
	})
}

// On a machine whose processors all have other work, a worker comes to its turn late, and may be taken for hung. That costs some merging,
// and no byte; how often it happens, without other work and with it, is reported.
func TestABusyMachineCostsNoByte(t *testing.T) {
	needLong(t)
	r, vm := oneTapVM(t, netnstest.Options{})
	stop := make(chan struct{})
	done := r.transfers(vm.Guest, stop)
	r.reportHangs("no other work", vm)
	for range 2 * runtime.NumCPU() {
		busy := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = busy.Wait() }) // the context has ended it
	}
	r.reportHangs("two other processes for each processor", vm)
	r.whole(stop, done)
}

// reportHangs logs how a minute of load was.
func (r *rig) reportHangs(when string, vm *tapvm.VM) {
	r.t.Helper()
	look := func() (s api.Stats, g tapvm.Stats) {
		r.json(&s, "stats")
		return s, vm.Stats()
	}
	a, from := look()
	start := time.Now()
	time.Sleep(time.Minute)
	took := time.Since(start).Seconds()
	b, to := look()
	name := r.net.B.Dev + "/0"
	p, q := a.Queues[name], b.Queues[name]
	passed := q.HangPassed - p.HangPassed
	r.t.Logf("%s: %.0f MB/s, mean frame of %d bytes; %d hangs in %.0f s, %d of %d frames by the kernel, %d late", when, float64(to.Bytes-from.Bytes)/1e6/took,
		(to.Bytes-from.Bytes)/max(1, to.Frames-from.Frames), q.Hangs-p.Hangs, took, passed, passed+q.RxFrames-p.RxFrames, b.VMs[0].LatePackets-a.VMs[0].LatePackets)
}
