package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// healthy waits until all of it is in a state, and until reasons are exactly those that contain these words, one each.
func (r *rig) healthy(when string, want api.HealthState, reasons ...string) {
	r.t.Helper()
	r.eventually(when, func() error {
		var st api.Status
		r.json(&st, "status")
		err := fmt.Errorf("health is %+v", st.Health)
		if st.Health.State != want || len(st.Health.Reasons) != len(reasons) {
			return err
		}
		for i, words := range reasons {
			if !strings.Contains(st.Health.Reasons[i], words) {
				return err
			}
		}
		table, _ := r.cli("status")
		if !strings.Contains(table, string(want)) {
			return fmt.Errorf("%w, and status shows\n%s", err, table)
		}
		return nil
	})
}

// Health is good when and only when everything is: it says, with the reason, that no front-end is there, that the link is down at
// either end, that a VM waits, and that a sender's checksums will be dropped before any of them is.
func TestHealthSaysWhatIsSo(t *testing.T) {
	r := newRig(t, netnstest.Options{NoIPv6: true})
	r.healthy("where pins cannot be", api.HealthDegraded, "not on a bpf filesystem")
	r.pinned()
	r.healthy("without VMs", api.HealthGood)
	if out := r.must("status"); strings.Contains(out, "not pinned") {
		t.Errorf("without VMs there is no flow map:\n%s", out)
	}
	sock := r.attach("vm0", macA)
	r.healthy("before the front-end", api.HealthDown, "no front-end is connected to "+sock)
	g := r.boot(stackguest.Config{Socket: sock, MAC: mac(t, macA)}, "10.77.0.10/24")
	r.healthy("all is well", api.HealthGood)

	a, b := r.net.A, r.net.B
	a.Output(t, "ip", "link", "set", "dev", a.Dev, "down")
	r.healthy("the other end is down", api.HealthDown, b.Dev+" has no carrier")
	a.Output(t, "ip", "link", "set", "dev", a.Dev, "up")
	b.Output(t, "ip", "link", "set", "dev", b.Dev, "down")
	r.healthy("our end is down", api.HealthDown, b.Dev+" is switched off")
	b.Output(t, "ip", "link", "set", "dev", b.Dev, "up")
	r.healthy("the link is back", api.HealthGood)

	a.SetOffload(t, netdev.TxChecksum, true)
	r.healthy("a sender of partial checksums", api.HealthDegraded, a.Dev+" sends partial checksums")
	a.SetOffload(t, netdev.TxChecksum, false)
	r.healthy("it is mended", api.HealthGood)

	g.Close()
	r.healthy("the front-end has gone", api.HealthDown, "no front-end is connected")
	b.Output(t, "ip", "link", "set", "dev", b.Dev, "mtu", "20000") // more than sockets hold
	r.healthy("the VM waits", api.HealthDown, b.Dev+"/vm0: waits: ")
	r.must("detach", b.Dev)
	r.healthy("after the last detach", api.HealthGood)
	if out := r.must("status"); strings.Contains(out, "not pinned") {
		t.Errorf("after the last detach there is no flow map:\n%s", out)
	}
}
