package e2e

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
)

// worker is the process that works, a child of the keeper that was started.
func (r *rig) worker() int {
	r.t.Helper()
	var st api.Status
	r.json(&st, "status")
	if st.PID == r.run.Process.Pid {
		r.t.Fatal("the process that was started works itself: nothing outlives it")
	}
	return st.PID
}

// crash kills the process that works, and waits for the next one.
func (r *rig) crash() {
	r.t.Helper()
	was := r.worker()
	if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("the next data plane answers", func() error {
		var st api.Status
		out, code := r.cli("status", "-o", "json")
		if code != 0 {
			return errors.New(out)
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		if st.PID == was {
			return errNotYet
		}
		return nil
	})
}

// A crash is a hiccup: the process that works is killed at random moments, and the next one goes on with the same connections, rings and
// sockets, also after an upgrade. The transfers of a vhost-user VM and of a VM on a tap arrive whole, and every packet of the last process is explained.
func TestACrashIsAHiccup(t *testing.T) {
	if netnstest.Emulated() {
		t.Skip("allowed: 2 s from a crash to the next process are too few for an emulated machine under eight streams: the unit stage runs it on a real one, and test/systemd in a VM without them")
	}
	r, g, load := twoVMs(t, "", 8)
	r.replace()
	for range replacements() {
		time.Sleep(2500*time.Millisecond + time.Duration(rand.IntN(300))*time.Millisecond) // slower than a crash loop
		load.around(r.crash)
		g.calm(t)
	}
	load.end(t)
	netnstest.Bulk(t, g.side, r.net.A, 4<<20, false, time.Minute)
	g.calm(t)
	var after api.Stats
	r.json(&after, "stats")
	explain(t, after)
}
