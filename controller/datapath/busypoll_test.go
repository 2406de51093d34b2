package datapath

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A worker that polls looks on for the time it was given after it had something to do, and not at all without.
func TestAWorkerPollsForItsTimeAfterTraffic(t *testing.T) {
	const spell = 1000
	for _, c := range []struct {
		name         string
		spell        int64
		moved, broke bool
		after        int64
		want         bool
	}{
		{"just moved", spell, true, false, 0, true},
		{"within its time", spell, true, false, spell - 1, true},
		{"its time is over", spell, true, false, spell, false},
		{"never moved", spell, false, false, spell, false},
		{"the NIC is broken", spell, true, true, 0, false},
		{"it is to sleep at once", 0, true, false, 0, false},
	} {
		r := newRig(t, func(cfg *Config) { cfg.BusyPoll = c.spell })
		if c.moved {
			r.vm(1)
			r.inject(to(1, 100).Frame())
			if !r.step() {
				t.Fatal("nothing moved")
			}
		}
		r.w.busyPoll() // notes the time
		r.w.nicBroken = c.broke
		r.now.Add(c.after)
		polls := r.nic.polls
		if got := r.w.busyPoll(); got != c.want || (r.nic.polls > polls) != c.want {
			t.Errorf("%s: %v, %d polls", c.name, got, r.nic.polls-polls)
		}
	}
}

// A frame that only the driver's own poll brings is delivered by a worker that polls.
func TestABusyPollBringsFrames(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.BusyPoll = 1 << 40 })
	g := r.vm(1)
	r.inject(to(1, 100).Frame())
	r.step()
	late := to(1, 200).Frame()
	r.nic.onPoll = func() { r.inject(late) }
	if !r.w.busyPoll() || !r.step() {
		t.Fatal("no frame came by the poll")
	}
	if n := len(g.got); n != 2 {
		t.Errorf("%d frames at the guest, want 2", n)
	}
}

// The worker's thread runs where it was bound to.
func TestAWorkersThreadIsBoundToItsCPUs(t *testing.T) {
	var allowed, got unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	last := 1023
	for !allowed.IsSet(last) {
		last--
	}
	r := running(t, func(cfg *Config) { cfg.CPUs = []int{last} })
	r.on(func() {
		if err := unix.SchedGetaffinity(0, &got); err != nil {
			t.Error(err)
		}
	})
	if got.Count() != 1 || !got.IsSet(last) {
		t.Errorf("the worker may run on %d CPUs, want CPU %d alone", got.Count(), last)
	}
}
