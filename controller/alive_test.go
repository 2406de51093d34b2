package controller

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

// slowGuest makes its worker stand still in Check until it is told to go on.
type slowGuest struct {
	countingGuest
	in, out chan struct{}
}

func (g *slowGuest) Check(bool) error {
	close(g.in)
	<-g.out
	return nil
}

// What feeds the watchdog: workers that sleep are alive, also while an attach holds the controller's lock; one that stands still is not,
// and is again when it goes on.
func TestAliveIsWhatEveryWorkerAnswers(t *testing.T) {
	withThird(t, func(r *thirdRig) error {
		c, dev := r.c, r.net.B.Dev
		c.mu.Lock()
		if err := c.Alive(); err != nil {
			t.Errorf("idle: %v", err)
		}
		c.mu.Unlock()

		q, idx := c.uplinks[dev].queues[0], c.uplinks[dev].vms["third"].idx
		g := &slowGuest{countingGuest{k: r.k, nic: q.sock}, make(chan struct{}), make(chan struct{})}
		if err := errors.Join(q.StopPort(idx), q.StartPort(idx, g, nil, portConfig(api.BuiltinPolicy(), 0))); err != nil {
			return err
		}
		answered := make(chan error, 1)
		go func() { answered <- q.CheckGuest(idx, false) }()
		<-g.in
		if err := c.Alive(); !errors.Is(err, datapath.ErrStuck) {
			t.Errorf("one stands still: %v", err)
		}
		close(g.out)
		<-answered
		if err := c.Alive(); err != nil {
			t.Errorf("it goes on: %v", err)
		}
		_, err := c.Detach(api.DetachRequest{Iface: dev})
		if alive := c.Alive(); alive != nil {
			t.Errorf("without a worker: %v", alive)
		}
		return err
	})
}
