package controller

import (
	"errors"
	"sync"

	"github.com/rscctl/rscctl/controller/datapath"
)

// pulses are the uplinks whose workers a watchdog asks after. They have a lock of their own: an attach holds the controller's for as
// long as a link flaps or libvirt does not answer, and the workers live meanwhile. The zero value is usable.
type pulses struct {
	mu      sync.Mutex
	uplinks map[*uplink][]uint64 // the activity of each queue's worker at the last look
}

func (p *pulses) add(u *uplink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.uplinks == nil {
		p.uplinks = map[*uplink][]uint64{}
	}
	p.uplinks[u] = make([]uint64, len(u.queues))
}

func (p *pulses) remove(u *uplink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.uplinks, u)
}

// Alive is nil when every worker has moved something since the last call, or answers a message between two bursts. Otherwise it is
// datapath.ErrStuck, of the first that did neither within 2 s (20 ms where it was silent before). A worker that has ended is no
// error: it is made anew with its interface. Alive waits for no attach. It is meant for one caller, every few seconds.
func (c *Controller) Alive() error {
	c.pulses.mu.Lock()
	defer c.pulses.mu.Unlock()
	for u, seen := range c.pulses.uplinks {
		for i, q := range u.queues {
			now := q.Activity()
			moved := now != seen[i]
			seen[i] = now
			if moved {
				continue
			}
			// A question about no VM is answered like any other.
			if err := q.CheckGuest(datapath.MaxPorts, false); errors.Is(err, datapath.ErrStuck) {
				return err
			}
		}
	}
	return nil
}
