package vhost_test

import (
	"errors"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// await delivers what does not fit and goes to sleep as a worker does.
func await(t *testing.T, q *vhost.RxQueue, w *vhost.Waiter, size int) (asleep bool) {
	t.Helper()
	if !q.Begin() {
		t.Fatal("not running")
	}
	defer q.Commit()
	if err := q.Put(plain(makeFrame(size, 1))); !errors.Is(err, vhost.ErrNoBuffers) {
		t.Fatal(err)
	}
	return !q.Await(w)
}

// Two workers deliver into one queue and both sleep for lack of buffers. One of them takes the kick: the other is woken.
// Nobody has to look at the ring by the clock.
func TestWhoeverTakesAKickWakesTheOthers(t *testing.T) {
	for name, features := range map[string]virtio.Features{"events": all, "no events": without(all, virtio.FEventIdx)} {
		t.Run(name, func(t *testing.T) {
			p, socket, log := newPort(t, nil)
			g := newGuest(t, socket, func(c *user.FrontendConfig) { c.Features = features }).start()
			q, r := p.RX(0), g.RX(0)
			q.AckKick() // of the start
			woken := [3]int{}
			var w [3]*vhost.Waiter
			for i := range w {
				w[i] = &vhost.Waiter{Wake: func() { woken[i]++ }}
			}
			g.post(r, true, 2000)
			g.kick(r)
			for i := range w {
				if !await(t, q, w[i], 9000) {
					t.Fatal("buffers out of nothing")
				}
			}
			await(t, q, w[1], 9000) // twice is once
			q.Forget(w[2])
			// A third goroutine's small frame fits, and must not say that no kick is needed any more.
			if err := put(t, q, plain(makeFrame(1000, 1))); err != nil {
				t.Fatal(err)
			}
			g.post(r, true, 2000)
			if !g.kick(r) {
				t.Fatal("the guest was not asked for a kick")
			}
			q.Forget(w[0]) // this one found the kick
			q.AckKick()
			if woken != [3]int{0, 1, 0} {
				t.Errorf("woken %v", woken)
			}
			q.AckKick()
			if woken != [3]int{0, 1, 0} {
				t.Errorf("woken again: %v", woken)
			}
			for i := range w {
				if !await(t, q, w[i], 9000) {
					t.Fatal("buffers out of nothing")
				}
			}
			_ = g.Close()
			<-log.stopped
			if woken != [3]int{1, 2, 1} {
				t.Errorf("after the end: %v", woken)
			}
		})
	}
}

// Buffers that come between the look and the sleep are seen.
func TestAWaiterDoesNotSleepOverBuffers(t *testing.T) {
	p, socket, _ := newPort(t, nil)
	g := newGuest(t, socket, nil).start()
	q := p.RX(0)
	w := &vhost.Waiter{Wake: func() { t.Error("woken without sleep") }}
	if !q.Begin() {
		t.Fatal("not running")
	}
	if err := q.Put(plain(makeFrame(1000, 1))); !errors.Is(err, vhost.ErrNoBuffers) {
		t.Fatal(err)
	}
	g.post(g.RX(0), true, 2000)
	g.kick(g.RX(0))
	if !q.Await(w) {
		t.Error("would sleep")
	}
	q.Commit()
	q.AckKick()
}
