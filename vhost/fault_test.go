package vhost_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// mapsOf counts the mappings of the file of that name in this process.
func mapsOf(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	return bytes.Count(b, []byte(name))
}

// The start of a ring touches guest memory. Whichever of these touches faults, no queue runs afterwards, nothing of the
// guest's stays mapped but the guest's own view of it, and the next front-end is served.
func TestAFaultWhileRingsStartLeavesNothingBehind(t *testing.T) {
	faults, before := 0, mapsOf(t, "memfd:rscctl-guest")
	for at := int64(1); ; at++ {
		var n, fd atomic.Int64
		fd.Store(-1)
		p, socket, log := newPort(t, func(c *vhost.Config) {
			c.Touching(func() {
				if n.Add(1) == at && fd.Load() >= 0 {
					if err := unix.Ftruncate(int(fd.Load()), 0); err != nil {
						t.Error(err)
					}
				}
			})
		})
		g := newGuest(t, socket, func(c *user.FrontendConfig) {
			c.Pairs = 2
			c.Features = without(all, virtio.FEventIdx) // with it, a start only reads
		})
		fd.Store(int64(g.MemoryFile()))
		err := g.Start()
		if n.Load() < at { // all touches of a start have had their turn
			if err != nil {
				t.Fatal(err)
			}
			if faults == 0 {
				t.Fatal("a start touches nothing")
			}
			return
		}
		faults++
		if reason := <-log.stopped; !errors.Is(reason, vhost.ErrMemoryFault) {
			t.Errorf("touch %d: reason %v", at, reason)
		}
		if err := nothingRuns(p); err != nil {
			t.Errorf("touch %d: %v", at, err)
		}
		checkAlternating(t, log.all())
		_ = g.Close()
		if m := mapsOf(t, "memfd:rscctl-guest"); m != before {
			t.Errorf("touch %d: %d mappings, %d before", at, m, before)
		}
		fd.Store(-1)
		g = newGuest(t, socket, nil).start()
		exchange(t, p, g, 0)
		_ = g.Close()
		<-log.stopped
	}
}

// nothingRuns says which queue of a port without a front-end still does something.
func nothingRuns(p *vhost.Port) error {
	for i := range p.MaxPairs() {
		if p.RX(i).Begin() {
			p.RX(i).Commit()
			return fmt.Errorf("rx queue %d takes frames", i)
		}
		if _, err := p.TX(i).Poll(1, func(*vhost.TxFrame) bool { return false }); !errors.Is(err, vhost.ErrNotRunning) {
			return fmt.Errorf("tx queue %d: %w", i, err)
		}
		if p.RX(i).KickFD() != -1 || p.TX(i).KickFD() != -1 {
			return fmt.Errorf("pair %d has a kick", i)
		}
	}
	if p.Pairs() != 0 {
		return fmt.Errorf("%d pairs run", p.Pairs())
	}
	return nil
}
