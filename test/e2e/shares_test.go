package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// frozen runs fn while the controller's worker stands still: what comes meanwhile has to find room in the RX ring.
func (r *rig) frozen(fn func()) {
	r.t.Helper()
	pid := r.worker()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	defer func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			r.t.Fatal(err)
		}
	}()
	r.eventually("the controller stands still", func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(threads) == 0 {
			return fmt.Errorf("process %d: no threads, %v", pid, err)
		}
		for _, thread := range threads {
			status, err := os.ReadFile(thread)
			if err != nil || !strings.Contains(string(status), "\nState:\tT") {
				return fmt.Errorf("%s: %s, %v", thread, status, err)
			}
		}
		return nil
	})
	fn()
}

// reached is how many frames have reached a VM's guest.
func (r *rig) reached(vm string) uint64 {
	r.t.Helper()
	var st api.Stats
	r.json(&st, "stats", "--vm", vm)
	return st.VMs[0].GuestFrames
}

// A flood at one VM leaves its neighbours of the same NIC queue at least nine tenths of what they get alone: however far the
// worker is behind, the flood holds no more than its share of the RX ring.
func TestAFloodAtOneVMLeavesItsNeighboursTheirFrames(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.boot(stackguest.Config{Socket: r.attach("flooded", macA), MAC: mac(t, macA)})
	r.boot(stackguest.Config{Socket: r.attach("honest", macB), MAC: mac(t, macB)})
	in := r.net.A.Injector(t)
	to := func(address string) []byte { return probe(mac(t, address), r.net.A.MAC, "x") }
	send := func(frame []byte, n int, pause time.Duration) {
		for range n {
			if err := in.Send(frame); err != nil {
				t.Error(err)
				return
			}
			if pause > 0 {
				time.Sleep(pause)
			}
		}
	}
	// gets is how many of n frames reach the honest VM.
	gets := func(n int, how func()) uint64 {
		t.Helper()
		before := r.reached("honest")
		how()
		var got uint64
		for last := time.Now(); time.Since(last) < time.Second && got < uint64(n); time.Sleep(20 * time.Millisecond) {
			if now := r.reached("honest") - before; now != got {
				got, last = now, time.Now()
			}
		}
		return got
	}

	const paced, burst, pace = 1000, 400, 300 * time.Microsecond
	const floodFrames = 12_000 // into a ring of 8,192 at most
	alone := gets(paced, func() { send(to(macB), paced, pace) })
	beside := gets(paced, func() {
		var stop atomic.Bool
		ended := make(chan struct{})
		flood, victim := r.net.A.Injector(t), to(macA)
		go func() {
			defer close(ended)
			for !stop.Load() {
				if flood.Send(victim) != nil {
					return
				}
			}
		}()
		send(to(macB), paced, pace)
		stop.Store(true)
		<-ended
	})
	if beside*10 < alone*9 {
		t.Errorf("beside a flood %d of %d frames reach the VM, alone %d", beside, paced, alone)
	}

	// The same with a worker that is behind by thousands of frames, which a fast sender needs no help for.
	behind := gets(burst, func() {
		r.frozen(func() {
			send(to(macA), floodFrames, 0)
			send(to(macB), burst, 0)
		})
	})
	if behind*10 < burst*9 {
		t.Errorf("behind a flood %d of %d frames reach the VM", behind, burst)
	}
	var st api.Stats
	r.json(&st, "stats")
	if st.Outcomes["rx_share"] < floodFrames/2 {
		t.Errorf("of a flood of %d frames %d are counted as above the VM's share", floodFrames, st.Outcomes["rx_share"])
	}
}
