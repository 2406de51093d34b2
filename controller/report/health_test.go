package report

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

// sound is an uplink on which nothing is wrong: two queues, two VMs whose guests run.
func sound() *Snapshot {
	s := twoQueues()
	u := &s.Uplinks[0]
	for i := range u.Queues {
		q := u.Queues[i].Seen
		q.Kernel.RxInvalid, q.Kernel.TxInvalid = 0, 0
	}
	for i := range u.VMs {
		u.VMs[i].Port.State, u.VMs[i].PartialPast = api.PortRunning, true
	}
	return s
}

func statusOf(s *Snapshot) *api.Status {
	st := &api.Status{Interfaces: Interfaces(s)}
	st.Health = Health(st)
	return st
}

func TestWhatIsSoundIsGood(t *testing.T) {
	st := statusOf(sound())
	nic := st.Interfaces[0]
	for what, h := range map[string]api.Health{
		"all": st.Health, "interface": nic.Health, "queue 0": nic.Queues[0].Health, "queue 1": nic.Queues[1].Health, "web": nic.Ports[0].Health, "db": nic.Ports[1].Health,
	} {
		if h.State != api.HealthGood || h.Reasons == nil || len(h.Reasons) != 0 {
			t.Errorf("%s: %+v", what, h)
		}
	}
	if nic.Link != api.LinkUp {
		t.Errorf("link %s", nic.Link)
	}
	if h := Health(&api.Status{}); h.State != api.HealthGood {
		t.Errorf("of a controller without VMs: %+v", h)
	}
}

// Whatever is wrong is said with its reason where it is wrong, and once of all.
func TestWhatIsWrongIsSaidWhereItIs(t *testing.T) {
	const good, degraded, down = api.HealthGood, api.HealthDegraded, api.HealthDown
	for name, c := range map[string]struct {
		spoil              func(u *Uplink)
		nic, queue, vm, db api.HealthState // of eth1, its queue 0, web and db
		all                api.HealthState
		reason             string // the only one of all
	}{
		"link down":     {func(u *Uplink) { u.Up = false }, down, degraded, degraded, degraded, down, "eth1: eth1 is switched off: 'ip link set dev eth1 up'"},
		"no carrier":    {func(u *Uplink) { u.Carrier = false }, down, degraded, degraded, degraded, down, "eth1: eth1 has no carrier: look at"},
		"a warning":     {func(u *Uplink) { u.Warnings = []string{"eth9 sends partial checksums"} }, degraded, good, good, good, degraded, "eth1: eth9 sends partial checksums"},
		"stuck worker":  {func(u *Uplink) { u.Queues[0] = Queue{Err: fmt.Errorf("worker 0: %w", datapath.ErrStuck)} }, good, down, good, good, degraded, "eth1/0: worker 0: the worker does not answer: its frames wait"},
		"bad rings":     {func(u *Uplink) { u.Queues[0].Seen.Kernel.TxInvalid = 3 }, good, degraded, good, good, degraded, "eth1/0: 3 bad descriptors"},
		"no front-end":  {func(u *Uplink) { u.VMs[0].Port.State, u.VMs[0].Port.Socket = api.PortWaiting, "/s" }, good, good, down, good, degraded, "eth1/web: no front-end is connected to /s: start the VM"},
		"nobody serves": {func(u *Uplink) { u.VMs[0].Port.State, u.VMs[0].Port.Mode = api.PortWaiting, api.ModeConnect }, good, good, down, good, degraded, "eth1/web: nobody serves"},
		"no reader":     {func(u *Uplink) { u.VMs[0].Port.State, u.VMs[0].Port.Tap = api.PortWaiting, "vnet3" }, good, good, down, good, degraded, "eth1/web: nobody has tap vnet3 open"},
		"no driver":     {func(u *Uplink) { u.VMs[0].Port.State = api.PortConnected }, good, good, down, good, degraded, "eth1/web: its guest's rings do not run"},
		"thrown out":    {func(u *Uplink) { u.VMs[0].Port.State, u.VMs[0].Port.StopReason = api.PortFailed, "bad index" }, good, good, down, good, degraded, "eth1/web: its port is failed: bad index"},
		"kernel's path": {func(u *Uplink) { u.VMs[0].Port.Warnings = []string{"VM web has the kernel's path: rules"} }, good, good, degraded, good, degraded, "eth1/web: VM web has the kernel's path: rules"},
		"checksums":     {func(u *Uplink) { u.VMs[0].PartialPast = false }, good, good, degraded, good, degraded, "eth1/web: 15 frames for VM web came with partial checksums"},
		"unexplained":   {func(u *Uplink) { u.Queues[1].Seen.Ports[0].Ledger.In++ }, good, good, degraded, good, degraded, "eth1/web: 1 packets are unexplained"},
	} {
		s := sound()
		c.spoil(&s.Uplinks[0])
		st := statusOf(s)
		nic := st.Interfaces[0]
		got := []api.HealthState{nic.Health.State, nic.Queues[0].Health.State, nic.Ports[0].Health.State, nic.Ports[1].Health.State, st.Health.State}
		if want := []api.HealthState{c.nic, c.queue, c.vm, c.db, c.all}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if len(st.Health.Reasons) != 1 || !strings.HasPrefix(st.Health.Reasons[0], c.reason) {
			t.Errorf("%s: of all %q", name, st.Health.Reasons)
		}
		for _, h := range []api.Health{nic.Health, nic.Queues[0].Health, nic.Ports[0].Health} {
			if (h.State == good) != (len(h.Reasons) == 0) {
				t.Errorf("%s: %+v", name, h)
			}
		}
	}
}

// A controller is down when it has VMs and serves none of them; a VM that waits is said with its cause.
func TestAWaitingVMIsNotGood(t *testing.T) {
	st := statusOf(sound())
	st.Waiting = []api.Waiting{{VM: "mail", Iface: "eth2", Since: time.Now(), Cause: "tap vnet9: no such device"}}
	if h := Health(st); h.State != api.HealthDegraded || !slices.Equal(h.Reasons, []string{"eth2/mail: waits: tap vnet9: no such device"}) {
		t.Errorf("%+v", h)
	}
	st.Interfaces = nil
	if h := Health(st); h.State != api.HealthDown {
		t.Errorf("nothing else is served: %+v", h)
	}
	if h := Health(&api.Status{Warnings: []string{"the state is not saved"}}); h.State != api.HealthDegraded || len(h.Reasons) != 1 {
		t.Errorf("%+v", h)
	}
}
