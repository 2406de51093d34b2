package vhost_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
)

// FuzzPort: a front-end sends what starts, stops and moves rings in any order, while a worker serves the port without a
// pause and memory vanishes at any touch or between any two messages. Whatever it does, the connection ends for a reason
// of the front-end's and not by a mistake of ours, nothing stays mapped, the hooks keep their order, and the next
// front-end is served.
func FuzzPort(f *testing.F) {
	var fault atomic.Int64 // touches left until memory vanishes; 0 and less: it stays
	var victim atomic.Pointer[scripted]
	p, socket, log := newPort(f, func(c *vhost.Config) {
		c.Touching(func() {
			if s := victim.Load(); fault.Add(-1) == 0 && s != nil {
				s.vanish()
			}
		})
	})
	f.Cleanup(busyWorker(p))
	pool := everyHandler()
	// An input is pairs of bytes: a step of the pool, or above them one of these, and an argument.
	const (
		faultAt = iota
		vanish
		pause
		specials
	)
	whole := make([]byte, 0, 2*len(pool))
	for i := range pool {
		whole = append(whole, byte(i), 0)
	}
	special := func(op, arg int) []byte { return []byte{byte(len(pool) + op), byte(arg)} }
	f.Add(whole)
	for _, n := range []int{1, 5, 9, 20} {
		f.Add(append(special(faultAt, n), whole...))
		cut := 2 * (n * len(pool) / 25)
		f.Add(append(append(append([]byte{}, whole[:cut]...), special(vanish, 0)...), whole[cut:]...))
	}
	if len(pool)+specials > 256 {
		f.Fatal("a step has no byte")
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newScripted(t, socket)
		fault.Store(0)
		victim.Store(s)
		for ; len(in) >= 2; in = in[2:] {
			op, arg := int(in[0]), in[1]
			if takes := op - len(pool); raceEnabled && (takes == faultAt || takes == vanish) {
				continue
			}
			switch op - len(pool) {
			case faultAt:
				fault.Store(int64(arg))
			case vanish:
				s.vanish()
			case pause:
				time.Sleep(time.Duration(arg) * time.Microsecond)
			default:
				if op < len(pool) && s.play(pool[op:op+1]) == 0 {
					in = in[:2] // the connection has ended
				}
			}
		}
		victim.Store(nil)
		s.close()
		reason := <-log.stopped
		if reason == nil || errors.Is(reason, vhost.ErrInternal) || errors.Is(reason, vhost.ErrQueueStuck) {
			t.Errorf("ended with %v", reason)
		}
		if m := mapsOf(t, scriptFile); m != 0 {
			t.Errorf("%d mappings left", m)
		}
		checkAlternating(t, log.take())
		again := newScripted(t, socket)
		if n := again.play(pool[:8]); n != 8 {
			t.Errorf("the next front-end: %d steps", n)
		}
		again.close()
		if reason := <-log.stopped; !errors.Is(reason, user.ErrDisconnected) {
			t.Errorf("the next front-end: %v", reason)
		}
		log.take()
	})
}
