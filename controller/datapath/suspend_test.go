package datapath

import "testing"

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

// A worker that was made ahead is the one that works, unless it is of other sizes.
func TestAPreparedWorkerIsTheOneThatWorks(t *testing.T) {
	for name, more := range map[string]int{"the same size": 0, "another": 64} {
		t.Run(name, func(t *testing.T) {
			var made *Worker
			r := running(t, func(c *Config) {
				var err error
				if made, err = Prepare(c.Chunks, c.Slots+more); err != nil {
					t.Fatal(err)
				}
				c.Prepared = made
			})
			if (r.w == made) != (more == 0) {
				t.Errorf("prepared %p, works %p", made, r.w)
			}
			if err := r.w.Add(PortConfig{Index: 1, Addr: Addr{MAC: macOf(1)}}); err != nil {
				t.Fatal(err)
			}
			if err := r.w.StartPort(1, r.newGuest(), nil, rules()); err != nil {
				t.Fatal(err)
			}
			r.inject(to(1, 100).Frame(), to(1, 100).Frame())
			waitFor(t, "the frames are taken", func() bool { return r.nic.with(inRX) == 0 })
		})
	}
}
