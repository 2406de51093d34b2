package datapath

import (
	"errors"
	"testing"
)

// A worker that is suspended leaves what comes in the NIC's rings, so that whoever goes on with them finds it there, and answers the
// control side. When it is resumed it takes everything.
func TestASuspendedWorkerTakesNothing(t *testing.T) {
	r := running(t, func(c *Config) { c.Suspended = true })
	if err := r.w.Add(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}}); err != nil {
		t.Fatal(err)
	}
	g := r.newGuest()
	if err := r.w.StartPort(1, g, nil, rules()); err != nil {
		t.Fatal(err)
	}
	r.inject(to(1, 100).Frame(), to(1, 100).Frame())
	for range 3 {
		if _, err := r.w.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.nic.with(inRX); n != 2 {
		t.Fatalf("%d frames are in the RX ring, 2 came", n)
	}
	if err := r.w.Resume(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the frames are taken", func() bool { return r.nic.with(inRX) == 0 })
}

// What a worker holds when it is suspended reaches the guest at once, whatever the hold is: nothing waits for a deadline.
func TestSuspendDeliversWhatIsHeld(t *testing.T) {
	r := running(t)
	if err := r.w.Add(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}}); err != nil {
		t.Fatal(err)
	}
	g := r.newGuest()
	long := rules()
	long.Hold = 1 << 40
	if err := r.w.StartPort(1, g, nil, long); err != nil {
		t.Fatal(err)
	}
	r.inject(to(1, 1000).Frame())
	held := func() (n uint64) {
		s, err := r.w.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return s.Ports[0].Ledger.Held
	}
	waitFor(t, "the segment is held", func() bool { return held() == 1 })
	if err := r.w.Suspend(0); err != nil {
		t.Fatal(err)
	}
	s, err := r.w.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if l := &s.Ports[0].Ledger; l.Held != 0 || l.Frames != 1 {
		t.Errorf("held %d, delivered %d after Suspend", l.Held, l.Frames)
	}
}

// A worker that was not started does what it is told all the same, so that it can be made ready while another process has the rings: it
// touches none of them until it is resumed, and when it is stopped before that, its guests are closed.
func TestAWorkerIsMadeReadyBeforeItStarts(t *testing.T) {
	for _, what := range []string{"resumed", "stopped"} {
		t.Run(what, func(t *testing.T) {
			wake := eventfd(t)
			r := newRig(t, func(c *Config) { c.WakeFD, c.Clock, c.Suspended = wake, nil, true })
			r.nic.withFD()
			if err := r.w.Add(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}}); err != nil {
				t.Fatal(err)
			}
			g := r.newGuest()
			if err := r.w.StartPort(1, g, nil, rules()); err != nil {
				t.Fatal(err)
			}
			r.inject(to(1, 100).Frame(), to(1, 100).Frame())
			if s, err := r.w.Snapshot(); err != nil || len(s.Ports) != 1 {
				t.Fatalf("%+v, %v", s, err)
			}
			if n := r.nic.with(inRX); n != 2 {
				t.Fatalf("%d frames are in the RX ring, 2 came", n)
			}
			if what == "stopped" {
				if err := r.w.Stop(); err != nil || g.closed != 1 {
					t.Errorf("the guest was closed %d times, %v", g.closed, err)
				}
				return
			}
			if err := r.w.Resume(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.stop)
			waitFor(t, "the frames are taken", func() bool { return r.nic.with(inRX) == 0 })
		})
	}
}

// What another process has sent of a guest by the NIC's rings may be on its way when the worker begins: none of it is overtaken by the
// kernel's way, though the guest was there before anybody looked at the rings.
func TestWhatWasSentBeforeTheWorkerBeganIsNotOvertaken(t *testing.T) {
	r, k := newWireRig(t)
	r.nic.busy = true
	r.sender(1)
	if _, d, ok := r.nic.AllocTx(); !ok || !r.nic.Send(d, 64) {
		t.Fatal("no room")
	}
	k.direct = true
	r.w.begin()
	if r.w.drained(r.w.egress[0]) {
		t.Error("the frame that is on its way is not waited for")
	}
	if !r.w.direct.Load() {
		t.Error("it is not known which way the socket sends")
	}
	r.nic.busy = false
	if !r.w.drained(r.w.egress[0]) {
		t.Error("it is waited for once it has left")
	}
}

// One that is not to begin suspended has no word before Start.
func TestAWorkerThatWasNotStartedAnswersNothing(t *testing.T) {
	r := newRig(t)
	if err := r.w.Add(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}}); !errors.Is(err, ErrStopped) {
		t.Errorf("%v", err)
	}
}
