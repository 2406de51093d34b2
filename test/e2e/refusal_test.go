package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// A guest that drops every superframe is found out, said so, and served single packets: a transfer of 20 s and more runs at no less than
// half of its rate with coalescing off. With its policy set anew it is tried again, and when it takes superframes it gets them.
func TestAGuestThatDropsSuperframesIsServedSinglePackets(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	bulk := func(bytes int64) (rate float64) {
		took := netnstest.Bulk(t, r.net.A, g.side, bytes, false, 5*time.Minute).Elapsed
		return float64(bytes) / took.Seconds()
	}
	r.must("policy", "set", "vm0", "--coalesce", "off")
	bulk(8 << 20)
	off := bulk(64 << 20)
	g.RefuseSuperframes(true)
	r.must("policy", "set", "vm0", "--coalesce", "on")

	seconds := 22.0
	if netnstest.Emulated() {
		seconds = 5
	}
	on := bulk(int64(off * seconds))
	t.Logf("%.0f MB/s with coalescing off, %.2f of it by a guest that drops superframes; it dropped %d", off/1e6, on/off, g.Stats().Dropped)
	if on < off/2 {
		t.Errorf("%.2f of the rate with coalescing off", on/off)
	}
	var st api.Stats
	r.json(&st, "stats")
	if v := st.VMs[0]; v.Refusals == 0 || v.Passed["guest_refuses"] == 0 {
		t.Errorf("%d refusals, %d packets passed for them", v.Refusals, v.Passed["guest_refuses"])
	}
	p := r.firstPort()
	if p.Health.State != api.HealthDegraded || !slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "seems to drop superframes") }) {
		t.Errorf("health %+v", p.Health)
	}
	if why := r.must("why", "vm0"); !strings.Contains(why, "found") || !strings.Contains(why, "to drop superframes") || !strings.Contains(why, "--coalesce off") {
		t.Errorf("why:\n%s", why)
	}

	g.RefuseSuperframes(false)
	r.must("policy", "set", "vm0", "--coalesce", "on")
	before := st.VMs[0]
	bulk(16 << 20)
	r.json(&st, "stats")
	if v := st.VMs[0]; v.Refusals != before.Refusals || v.Superframes == before.Superframes {
		t.Errorf("a guest that takes superframes again: %d refusals more, %d superframes more", v.Refusals-before.Refusals, v.Superframes-before.Superframes)
	}
}
