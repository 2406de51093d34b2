package vhost

import (
	"errors"
	"fmt"
	"time"

	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Names of State.Name.
const (
	StateWaiting   = "waiting"   // no front-end
	StateConnected = "connected" // a front-end, no running ring
	StateRunning   = "running"   // at least one receive queue runs
	StateFailed    = "failed"    // no front-end, and the last one was thrown out
	StateStuck     = "stuck"     // waits for something that does not answer; Reason says for what
	StateClosed    = "closed"
)

// State is a snapshot of a Port for people.
type State struct {
	Name        string
	Reason      string // why the last connection ended; "" while one is there or after none
	Err         error  // the same
	Features    virtio.Features
	Protocol    user.ProtocolFeatures
	Pairs       int    // running
	QueueSize   int    // descriptors of receive queue 0, 0 before it was set up
	MTU         int    // told by the front-end, 0 if not
	Regions     int    // of guest memory
	Warning     string // what is wrong with a ring that runs: it may never move
	Sealed      bool   // the front-end cannot cut the memory short
	PeerPID     int    // of the front-end, 0 if unknown
	Connections uint64 // front-ends so far
}

// State returns a snapshot. It waits for nobody.
//
// A data goroutine that does not end its burst (a page of the guest's memory does
// not answer) is found by comparing with an earlier call of State, at least 2 s
// before: look once a second or so. A control goroutine that does not get on is
// found by one call.
func (p *Port) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := State{Name: StateWaiting, Err: p.last, Connections: p.sessions}
	stuck := p.stuck(time.Now())
	switch {
	case p.closing:
		s.Name, s.Err = StateClosed, nil
	case p.session != nil:
		i := p.session.Info()
		s.Name, s.Err = StateConnected, nil
		s.Features, s.Protocol, s.MTU = i.Features, i.Protocol, i.MTU
		s.QueueSize, s.Regions, s.Sealed, s.PeerPID = i.QueueSize, i.Regions, i.Sealed, i.PeerPID
		s.Warning = i.Warning
		if s.Pairs = p.Pairs(); s.Pairs > 0 {
			s.Name = StateRunning
		}
		if p.failure != nil { // about to be torn down
			s.Name, s.Err = StateFailed, p.failure
		}
	case p.last != nil && !errors.Is(p.last, user.ErrDisconnected):
		s.Name = StateFailed
	}
	if stuck != nil {
		s.Name, s.Err = StateStuck, stuck
	}
	if s.Err != nil {
		s.Reason = s.Err.Error()
	}
	return s
}

// sighting is a burst that was under way when State looked.
type sighting struct {
	burst uint64
	at    time.Time
}

// stuck says what the port has been waiting for too long, nil if nothing. The
// caller holds mu.
func (p *Port) stuck(now time.Time) (err error) {
	for i := range p.rx {
		for _, q := range []*queue{&p.rx[i].queue, &p.tx[i].queue} {
			// An even number means that no burst is under way; one that has changed, that another one is.
			if n := q.bursts.Load(); n%2 == 0 || n != q.sighted.burst {
				q.sighted = sighting{n, now}
			} else if err == nil && now.Sub(q.sighted.at) >= stuckAfter {
				err = fmt.Errorf("%w: %s: %w", ErrStuck, q.name, ErrQueueStuck)
			}
		}
	}
	if err != nil || p.session == nil {
		return err
	}
	if what, since := p.session.Busy(); what != "" && now.Sub(since) >= stuckAfter {
		return fmt.Errorf("%w: %s: no end after %d s", ErrStuck, what, int(now.Sub(since).Seconds()))
	}
	return nil
}

// Features returns what the guest accepted, 0 before it has.
func (p *Port) Features() virtio.Features {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session == nil {
		return 0
	}
	return p.session.Info().Features
}

// Pairs returns how many pairs have a running, enabled receive queue: pairs 0
// to n-1, as guests enable them in order.
func (p *Port) Pairs() int {
	n := 0
	for n < len(p.rx) && p.rx[n].active.Load() {
		n++
	}
	return n
}

// started says whether any ring runs, enabled or not. Control goroutine only.
func (p *Port) started() bool {
	for i := range p.rx {
		if p.rx[i].running.Load() || p.tx[i].running.Load() {
			return true
		}
	}
	return false
}

// Counters returns a snapshot, summed over the queues.
func (p *Port) Counters() Counters {
	var n [numCounters]uint64
	for i := range p.rx {
		p.rx[i].addTo(&n)
		p.tx[i].addTo(&n)
	}
	for i := range n {
		n[i] += p.carried[i]
	}
	sum := named(&n)
	sum.Faults = p.faults.Load()
	return sum
}
