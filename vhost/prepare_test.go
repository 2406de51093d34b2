package vhost_test

import (
	"encoding/json"
	"testing"

	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
)

// described is what Describe says of a port, its state as it travels.
func described(t *testing.T, p *vhost.Port) (vhost.PortState, []vhost.NamedFile) {
	t.Helper()
	st, files, err := p.Describe()
	if err != nil {
		t.Fatal(err)
	}
	return travelled(t, st), files
}

func travelled(t *testing.T, st vhost.PortState) vhost.PortState {
	t.Helper()
	b, err := json.Marshal(st)
	if err == nil {
		st, err = vhost.ReadPortState(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// packedState is what Pack says of a port whose files somebody else has already.
func packedState(t *testing.T, p *vhost.Port) vhost.PortState {
	t.Helper()
	st, files, err := p.Pack()
	if err != nil {
		t.Fatal(err)
	}
	user.CloseFiles(files)
	return travelled(t, st)
}

// A port that was prepared while the one before it worked goes on where that one stopped, with the state of then: frames that moved in between
// are not moved again, and the front-end notices neither.
func TestAPreparedPortGoesOnWhereTheOneBeforeStopped(t *testing.T) {
	p, cfg, _ := newHeritable(t, nil)
	g := newGuest(t, cfg.Socket, func(c *user.FrontendConfig) { c.Features, c.RingSize = all, 256 }).start()
	exchange(t, p, g, 0)
	st, files := described(t, p)
	r, err := vhost.Prepare(cfg, st, files)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // it takes none of this
		exchange(t, p, g, 0)
	}
	is := packedState(t, p)
	if !r.Fits(&is) {
		t.Fatalf("prepared from %+v, and now %+v", st, is)
	}
	heir, err := r.Start(&is)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = heir.Close() })
	for range 3 {
		exchange(t, heir, g, 0)
	}
	if err := heir.Noted(); err != nil {
		t.Error(err)
	}
	if now := heir.Counters(); now.RxFrames < 7 {
		t.Errorf("%d frames counted", now.RxFrames)
	}
}

// What was prepared and is not started leaves the port before it, its front-end and its rings as they were, and no descriptor open.
func TestAPreparedPortThatIsGivenUpLeavesNothing(t *testing.T) {
	p, cfg, _ := newHeritable(t, nil)
	g := newGuest(t, cfg.Socket, func(c *user.FrontendConfig) { c.Features, c.RingSize = all, 256 }).start()
	exchange(t, p, g, 0)
	before := len(openFDs(t))
	for range 3 {
		st, files := described(t, p)
		r, err := vhost.Prepare(cfg, st, files)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		exchange(t, p, g, 0)
	}
	if now := len(openFDs(t)); now != before {
		t.Errorf("%d descriptors, %d before", now, before)
	}
}

// A front-end that has come, gone or come again since a port was prepared makes it one that is not used.
func TestAPreparedPortDoesNotFitAnotherConnection(t *testing.T) {
	p, cfg, _ := newHeritable(t, nil)
	none, files := described(t, p)
	alone, err := vhost.Prepare(cfg, none, files)
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	g := newGuest(t, cfg.Socket, func(c *user.FrontendConfig) { c.Features, c.RingSize = all, 256 }).start()
	exchange(t, p, g, 0)
	st, files := described(t, p)
	if alone.Fits(&st) {
		t.Error("without a front-end, and one has come")
	}
	r, err := vhost.Prepare(cfg, st, files)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for name, change := range map[string]func(*vhost.PortState){
		"another connection": func(st *vhost.PortState) { st.FrontEnd.Connection += "x" },
		"none any more":      func(st *vhost.PortState) { st.FrontEnd = nil },
		"a ring is off":      func(st *vhost.PortState) { st.FrontEnd.Rings[0].Enabled = false },
		"another ring":       func(st *vhost.PortState) { st.FrontEnd.Rings[0].Kick += "x" },
		"more memory": func(st *vhost.PortState) {
			st.FrontEnd.Memory = append(st.FrontEnd.Memory, user.RegionState{GPA: 1 << 40})
		},
		"one waits": func(st *vhost.PortState) { st.Waiting = "waiting" },
	} {
		is := travelled(t, st)
		if !r.Fits(&is) {
			t.Fatal("it does not fit what it was prepared from")
		}
		if change(&is); r.Fits(&is) {
			t.Errorf("%s: it fits", name)
		}
	}
	is := travelled(t, st)
	is.FrontEnd.Rings[0].Base, is.Counters = 77, nil
	if !r.Fits(&is) {
		t.Error("frames have moved, and it does not fit")
	}
}
