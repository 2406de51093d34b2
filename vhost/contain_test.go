package vhost_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rscctl/rscctl/vhost"
)

// A mistake in a hook, or in what a front-end makes us do, ends that connection, with the place of the mistake; the process,
// the ports beside it, and the next connection of this port go on.
func TestAPanicEndsOnlyItsOwnConnection(t *testing.T) {
	check := bystander(t)
	before := mapsOf(t, "memfd:rscctl-guest")
	var armed atomic.Bool
	trip := func() {
		if armed.Swap(false) {
			var none []int
			none[len(none)+3] = 1
		}
	}
	for name, set := range map[string]func(c *vhost.Config){
		"started": func(c *vhost.Config) {
			f := c.Hooks.Started
			c.Hooks.Started = func(p *vhost.Port) { f(p); trip() }
		},
		"before stop": func(c *vhost.Config) {
			f := c.Hooks.BeforeStop
			c.Hooks.BeforeStop = func(p *vhost.Port) { f(p); trip() }
		},
		"touch": func(c *vhost.Config) { c.Touching(trip) },
		"stopped": func(c *vhost.Config) {
			f := c.Hooks.Stopped
			c.Hooks.Stopped = func(p *vhost.Port, err error) { f(p, err); trip() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, socket, log := newPort(t, set)
			fds := openFDs(t)
			armed.Store(true)
			g := newGuest(t, socket, nil)
			_ = g.Start() // may end in the middle
			_ = g.Close()
			reason := <-log.stopped
			waitFor(t, "counted", func() bool { return p.Counters().Faults == 1 })
			if name != "stopped" && (!errors.Is(reason, vhost.ErrInternal) || !strings.Contains(reason.Error(), "contain_test.go:")) {
				t.Errorf("reason %v", reason)
			}
			waitFor(t, "a log line", func() bool { return log.has("contain_test.go:") }) // each is a moment after the other
			waitFor(t, "a state that says it", func() bool {
				s := p.State()
				return s.Name == vhost.StateFailed && errors.Is(s.Err, vhost.ErrInternal)
			})
			if err := nothingRuns(p); err != nil {
				t.Error(err)
			}
			if m := mapsOf(t, "memfd:rscctl-guest"); m != before {
				t.Errorf("%d mappings, %d before", m, before)
			}
			closedSince(t, fds)
			g = newGuest(t, socket, nil).start()
			exchange(t, p, g, 0)
		})
	}
	check()
}
