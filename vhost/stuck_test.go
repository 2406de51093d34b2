package vhost_test

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// soon fails the test when fn takes as long as a wait without a bound would.
func soon(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s waits", what)
	}
}

// becomesStuck looks at a port as somebody who shows its state does.
func becomesStuck(t *testing.T, p *vhost.Port, reason string) {
	t.Helper()
	waitFor(t, "stuck", func() (stuck bool) {
		soon(t, "State", func() {
			s := p.State()
			stuck = s.Name == vhost.StateStuck && errors.Is(s.Err, vhost.ErrStuck) && strings.Contains(s.Reason, reason)
		})
		return stuck
	})
}

// A worker that does not end its burst, because a page of this guest's does not answer, is shown as what it is. Nothing
// that the control side asks waits for it, a Close gives up, and what the worker uses stays mapped until it is done.
func TestABurstThatDoesNotEndHoldsNobodyElse(t *testing.T) {
	t.Parallel()
	check := bystander(t)
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
	_, end, err := g.Alloc(1, 4096)
	if err != nil {
		t.Fatal(err)
	}
	g.post(g.RX(0), true, 2000)
	g.kick(g.RX(0))
	if !p.RX(0).Begin() {
		t.Fatal("not running")
	}
	soon(t, "Counters", func() {
		if c := p.Counters(); c.RxFrames != 1 || c.TxFrames != 1 {
			t.Errorf("%+v", c)
		}
	})
	becomesStuck(t, p, "rx queue 0")
	for range 2 {
		soon(t, "Close", func() {
			if err := p.Close(); !errors.Is(err, vhost.ErrStuck) {
				t.Errorf("close: %v", err)
			}
		})
	}
	if _, ok := mappingOfPort(t, end); !ok {
		t.Error("the memory was unmapped under the worker")
	}
	want := makeFrame(1000, 7)
	if err := p.RX(0).Put(plain(want)); err != nil { // would end the process
		t.Errorf("the worker goes on: %v", err)
	}
	p.RX(0).Commit()
	soon(t, "Close", func() {
		if err := p.Close(); err != nil {
			t.Errorf("close, once the burst has ended: %v", err)
		}
	})
	if _, got, _ := g.recv(g.RX(0)); !bytes.Equal(got, want) {
		t.Error("the frame of that burst was lost")
	}
	if _, ok := mappingOfPort(t, end); ok {
		t.Error("the memory is still mapped")
	}
	if reason := <-log.stopped; reason != nil {
		t.Errorf("reason %v", reason)
	}
	if s := p.State(); s.Name != vhost.StateClosed {
		t.Errorf("state %s", s.Name)
	}
	check()
}

// The same where the control goroutine is what waits.
func TestAStartThatDoesNotEndHoldsNobodyElse(t *testing.T) {
	t.Parallel()
	check := bystander(t)
	release := make(chan struct{})
	p, socket, _ := newPort(t, func(c *vhost.Config) { c.Touching(func() { <-release }) })
	g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = without(all, virtio.FEventIdx) })
	go func() { _ = g.Start() }() // waits for an answer
	becomesStuck(t, p, "SET_VRING_KICK")
	soon(t, "queues", func() {
		p.Counters()
		if p.RX(0).Begin() || p.TX(0).ArmKick() {
			t.Error("a queue runs")
		}
	})
	soon(t, "Close", func() {
		if err := p.Close(); !errors.Is(err, vhost.ErrStuck) {
			t.Errorf("close: %v", err)
		}
	})
	close(release)
	soon(t, "Close", func() {
		if err := p.Close(); err != nil {
			t.Errorf("close, once the page has answered: %v", err)
		}
	})
	check()
}

// However often the control side asks for a queue that is held, one goroutine waits for it, and it gives the queue back
// when nobody asks any more.
func TestAQueueThatIsHeldIsWaitedForOnce(t *testing.T) {
	waiting := func() int {
		all := make([]byte, 1<<20)
		return bytes.Count(all[:runtime.Stack(all, true)], []byte("queue).claim.func"))
	}
	p, socket, log := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	if !p.RX(0).Begin() {
		t.Fatal("not running")
	}
	_ = g.Close()
	becomesStuck(t, p, "rx queue 0")
	waitFor(t, "second try", func() bool { return log.count("too long") >= 2 })
	if n := waiting(); n != 1 {
		t.Errorf("%d goroutines wait", n)
	}
	p.RX(0).Commit()
	<-log.stopped
	if n := waiting(); n != 0 {
		t.Errorf("%d goroutines wait, after the burst", n)
	}
	g = newGuest(t, socket, nil).start()
	exchange(t, p, g, 0)
}
