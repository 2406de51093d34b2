package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
)

// needLong leaves out of a short run what takes minutes. That is the plan, not a lack.
func needLong(t *testing.T) {
	t.Helper()
	if os.Getenv("RSCCTL_LONG") != "1" {
		t.Skip("allowed: takes minutes: set RSCCTL_LONG=1 (make test-all does)")
	}
}

// transfers sends to a VM again and again until stop is closed, and says at the first that did not arrive whole why.
func (r *rig) transfers(to *netnstest.Side, stop <-chan struct{}) <-chan error {
	return r.between(r.net.A, to, stop)
}

// between is transfers from any side to any other.
func (r *rig) between(from, to *netnstest.Side, stop <-chan struct{}) <-chan error {
	bytes := int64(32 << 20)
	if netnstest.Emulated() {
		bytes = 4 << 20
	}
	out := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	go func() {
		defer cancel()
		for n := 0; ; n++ {
			select {
			case <-stop:
				if n == 0 {
					out <- fmt.Errorf("no transfer ended in time")
				}
				close(out)
				return
			default:
			}
			sink := to.Sink(r.t, netip.AddrPortFrom(to.IPv4.Addr(), 0))
			sent, err := from.Send(ctx, sink.Addr, bytes)
			var got [sha256.Size]byte
			if err == nil {
				got, _, err = sink.Wait(ctx)
			}
			if err == nil && got != sent {
				err = fmt.Errorf("hashes %x and %x", sent[:4], got[:4])
			}
			if err != nil {
				out <- fmt.Errorf("transfer %d: %w", n, err)
				return
			}
		}
	}()
	return out
}

// whole ends transfers, each of which must have arrived whole, and returns the counters, which must explain every packet.
func (r *rig) whole(stop chan<- struct{}, done <-chan error) (st api.Stats) {
	r.t.Helper()
	close(stop)
	if err := <-done; err != nil {
		r.t.Error(err)
	}
	r.json(&st, "stats")
	explain(r.t, st)
	return st
}

// Twenty controllers die at random moments, and every transfer to the tap VM arrives whole.
func TestTapTrafficSurvivesTwentyKills(t *testing.T) {
	needLong(t)
	r, vm := oneTapVM(t, netnstest.Options{})
	stop := make(chan struct{})
	done := r.transfers(vm.Guest, stop)
	for range 20 {
		time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond)
		r.kill()
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		r.start()
		r.eventually("merged again", func() error {
			var st api.Stats
			if r.json(&st, "stats"); len(st.VMs) == 0 || st.VMs[0].Superframes == 0 {
				return errNotYet
			}
			return nil
		})
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.must("detach", r.net.B.Dev)
	r.untouched(t)
}

// The policy goes off and on every 100 ms for a minute; every transfer arrives whole and every packet is explained.
func TestAMinuteOfTogglesOfATap(t *testing.T) {
	needLong(t)
	r, vm := oneTapVM(t, netnstest.Options{})
	stop := make(chan struct{})
	done := r.transfers(vm.Guest, stop)
	on := true
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		on = !on
		r.must("policy", "set", "vm0", "--coalesce", map[bool]string{true: "on", false: "off"}[on])
	}
	st := r.whole(stop, done)
	if s := st.VMs[0]; s.Dropped["port_down"]+s.FeedUnsent > 0 {
		t.Errorf("switching lost packets: %+v", s)
	}
	t.Logf("late: %d of %d packets", st.VMs[0].LatePackets, st.VMs[0].RxPackets)
}
