package vhost_test

import (
	"bytes"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A change after which frames go on is told as a pause: what was held for the guest is still there when it is over.
func TestAChangeThatIsNoEndIsAPause(t *testing.T) {
	var held atomic.Pointer[virtio.Frame]
	_, socket, log := newPort(t, func(c *vhost.Config) {
		pause, start := c.Hooks.BeforePause, c.Hooks.Started
		c.Hooks.BeforePause = func(p *vhost.Port) {
			pause(p)
			held.Store(plain(makeFrame(777, 1))) // arrives now
		}
		c.Hooks.Started = func(p *vhost.Port) {
			start(p)
			if f := held.Load(); f != nil && p.RX(0).Begin() {
				if err := p.RX(0).Put(f); err == nil {
					held.Store(nil)
				}
				p.RX(0).Commit()
			}
		}
	})
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Pairs = 2 }).start()
	if err := g.Enable(1, false); err != nil {
		t.Fatal(err)
	}
	held.Store(nil)
	log.take()
	g.post(g.RX(0), true, 2000)
	g.kick(g.RX(0))
	if err := g.Enable(1, true); err != nil {
		t.Fatal(err)
	}
	if got, want := log.take(), []string{"before pause", "started", "before pause", "started"}; !slices.Equal(got, want) {
		t.Errorf("another pair: %v", got)
	}
	if _, got, ok := g.recv(g.RX(0)); !ok || !bytes.Equal(got, makeFrame(777, 1)) {
		t.Error("the frame that came meanwhile was lost")
	}
	if err := g.Enable(1, false); err != nil {
		t.Fatal(err)
	}
	if got := log.take(); slices.Contains(got, "before stop") {
		t.Errorf("one of two pairs: %v", got)
	}
	if _, err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := log.take(); !slices.Contains(got, "before stop") || slices.Contains(got, "before pause") {
		t.Errorf("stop: %v", got)
	}
}

// An owner that knows no pause is told of a stop.
func TestAPauseIsAStopForWhoKnowsNone(t *testing.T) {
	_, socket, log := newPort(t, func(c *vhost.Config) { c.Hooks.BeforePause = nil })
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Pairs = 2 }).start()
	log.take()
	for _, on := range []bool{false, true} {
		if err := g.Enable(1, on); err != nil {
			t.Fatal(err)
		}
		if got, want := log.take(), []string{"before stop", "started", "before stop", "started"}; !slices.Equal(got, want) {
			t.Errorf("%v", got)
		}
	}
}
