package datapath

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// pushed are packets that nothing is merged with.
func pushed(n int) [][]byte {
	p := to(1, 500)
	p.Flags = pt.ACK | pt.PSH
	return train(p, n)
}

// steps is how often a worker that runs has looked at everything.
func (r *rig) steps() (n int) {
	r.nic.set(func(f *fakeNIC) { n = f.refills })
	return n
}

// userPort gives a VM of a worker that runs a real virtqueue.
func (r *rig) userPort(v *userVM) {
	r.tb.Helper()
	if err := r.w.Add(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}}); err != nil {
		r.tb.Fatal(err)
	}
	if err := r.w.StartPort(1, NewUserGuest(v.port.RX(0), r.nic, r.w.Wake), nil, rules()); err != nil {
		r.tb.Fatal(err)
	}
}

// waiting waits until so many frames wait for the VM, and the worker sleeps.
func (r *rig) waiting(frames int) {
	r.tb.Helper()
	waitFor(r.tb, "frames that wait", func() (yes bool) {
		r.on(func() { yes = r.w.ports[1].hungry && r.w.ports[1].out.n == frames })
		return yes
	})
	r.asleep()
}

// A VM that is paused with frames waiting for it costs no wake-up, until it posts buffers and kicks.
func TestAWorkerSleepsUntilTheHungryVirtqueueIsKicked(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	r := running(t)
	r.userPort(v)
	v.post(3, 2048)
	want := pushed(8)
	r.inject(want...)
	r.waiting(5)
	for range 2 {
		before := r.steps()
		time.Sleep(30 * time.Millisecond)
		if n := r.steps() - before; n != 0 {
			t.Errorf("%d steps while nothing can move", n)
		}
		if !v.post(1, 2048) { // also when the kick does not bring all that is needed
			t.Fatal("the guest was not asked for a kick")
		}
		waitFor(t, "a step", func() bool { return r.steps() != before })
		r.asleep()
	}
	r.waiting(3)
	v.post(10, 2048)
	waitFor(t, "the frames", func() (yes bool) {
		r.on(func() { yes = r.w.ports[1].out.n == 0 })
		return yes
	})
	packets(t, v.received(), want...)
}

// A guest without a sign of room is looked at by the clock, and no other for its sake.
func TestOnlyAGuestWithoutASignIsLookedAtByTheClock(t *testing.T) {
	for _, hasSign := range []bool{true, false} {
		r := running(t)
		g := r.add(1)
		fd := eventfd(t)
		r.on(func() {
			g.room = 0
			if hasSign {
				g.fd = fd
			}
		})
		r.inject(pushed(1)...)
		waitFor(t, "hunger", func() (yes bool) {
			r.on(func() { yes = r.w.ports[1].hungry })
			return yes
		})
		if hasSign {
			r.asleep()
		}
		before := r.steps()
		time.Sleep(30 * time.Millisecond)
		if n := r.steps() - before; (n == 0) != hasSign {
			t.Errorf("a sign: %v; %d steps", hasSign, n)
		}
	}
}

// taken takes a wake-up off an eventfd and says whether there was one.
func taken(fd int) bool {
	var b [8]byte
	n, _ := unix.Read(fd, b[:])
	return n == len(b)
}

// twoWorkers deliver into one queue, and both have a frame that found no buffer.
func twoWorkers(t *testing.T, v *userVM) (r [2]*rig, want [][]byte) {
	t.Helper()
	want = pushed(2)
	for i := range r {
		r[i] = newRig(t)
		r[i].w.cfg.WakeFD = eventfd(t)
		r[i].nic.withFD()
		r[i].userGuest(1, v)
		r[i].inject(want[i])
		r[i].step()
		if !r[i].w.ports[1].hungry {
			t.Fatal("buffers out of nothing")
		}
	}
	return r, want
}

// The kick of a shared queue is one descriptor. Whoever takes it wakes the others, who have not seen it.
func TestTheKickThatOneWorkerTakesWakesTheOther(t *testing.T) {
	v := newUserVM(t, allFeatures, 64, 8<<20)
	v.port.RX(0).AckKick() // of the start
	r, want := twoWorkers(t, v)
	if !v.post(20, 2048) {
		t.Fatal("the guest was not asked for a kick")
	}
	r[0].w.wait() // takes the kick
	if taken(r[0].w.cfg.WakeFD) {
		t.Error("a worker woke itself")
	}
	if taken(v.port.RX(0).KickFD()) {
		t.Error("the kick was left")
	}
	r[0].step()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r[1].w.wait()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		signal(r[1].w.cfg.WakeFD)
		<-done
		t.Error("the other worker slept over the kick")
	}
	r[1].step()
	packets(t, v.received(), want...)
}

// Who has nothing to deliver any more, or goes, is not woken: its descriptor may be somebody else's by then.
func TestAWorkerThatDoesNotWaitIsNotWoken(t *testing.T) {
	for name, end := range map[string]func(v *userVM, r *rig){
		"what waited has arrived": func(v *userVM, r *rig) {
			v.post(1, 2048)
			r.step()
			packets(r.tb, v.received(), pushed(2)[0])
		},
		"the VM is paused":  func(_ *userVM, r *rig) { r.w.pausePort(1) },
		"the VM is stopped": func(_ *userVM, r *rig) { r.w.stopPort(1) },
		"the worker ends":   func(_ *userVM, r *rig) { r.w.finish() },
	} {
		t.Run(name, func(t *testing.T) {
			v := newUserVM(t, allFeatures, 64, 8<<20)
			r, _ := twoWorkers(t, v)
			end(v, r[0])
			v.port.RX(0).AckKick()
			if taken(r[0].w.cfg.WakeFD) {
				t.Error("woken")
			}
			if !taken(r[1].w.cfg.WakeFD) {
				t.Error("the other one, which waits, was not woken")
			}
		})
	}
}

// trickle is a virtqueue of which one buffer too few is there whenever somebody looks, and one more when he turns away.
type trickle struct {
	RxQueue
	puts, most int
}

func (q *trickle) Begin() bool { return true }

func (q *trickle) Put(*virtio.Frame) error {
	if q.puts++; q.puts > q.most {
		return nil
	}
	return vhost.ErrNoBuffers
}

func (q *trickle) Await(*vhost.Waiter) bool { return true }
func (q *trickle) Commit() error            { return nil }
func (q *trickle) Walked() int              { return 1 }
func (q *trickle) KickFD() int              { return -1 }
func (q *trickle) MaxFrame() int            { return 0 }

// Nobody is woken by buffers that came before the sleep. So the worker tries again, and when that has no end it turns to the
// others first, but does not sleep.
func TestBuffersThatComeBeforeTheSleepAreNotSleptOver(t *testing.T) {
	for _, most := range []int{1, tryAgain, tryAgain + 1, 3 * tryAgain} {
		r := newRig(t)
		r.w.cfg.WakeFD = eventfd(t)
		r.nic.withFD()
		r.addPort(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}})
		q := &trickle{most: most}
		if err := r.w.startPort(1, NewUserGuest(q, r.nic, r.w.Wake), nil, rules()); err != nil {
			t.Fatal(err)
		}
		r.inject(pushed(1)...)
		for q.puts <= most {
			before := q.puts
			r.step()
			if n := q.puts - before; n == 0 || n > tryAgain+1 {
				t.Fatalf("%d tries in one step", n)
			}
			if hungry := r.w.ports[1].hungry; hungry != (q.puts <= most) || r.w.arm() != hungry {
				t.Fatalf("hungry %v, and the worker would sleep", hungry)
			}
		}
	}
}

// A driver that posts its buffers one by one, while the worker looks, leaves neither of them asleep.
func TestBuffersThatTrickleInWakeNobodyInVain(t *testing.T) {
	v := newUserVM(t, allFeatures, 1024, 8<<20)
	r := running(t)
	r.userPort(v)
	want := train(to(1, 1000), 40)
	r.inject(want...)
	for range 400 {
		v.post(1, 120)
	}
	waitFor(t, "the frames", func() (yes bool) {
		r.on(func() { l := r.ledger(1); yes = l.In == uint64(len(want)) && l.Held == 0 && l.Queued == 0 })
		return yes
	})
	packets(t, v.received(), want...)
}
