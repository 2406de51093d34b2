package report

import (
	"fmt"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
)

// verdict collects what is wrong with something.
type verdict struct{ api.Health }

func newVerdict() verdict {
	return verdict{api.Health{State: api.HealthGood, Reasons: []string{}}}
}

// degraded adds what is lost or not as it was asked for.
func (v *verdict) degraded(reasons ...string) {
	if len(reasons) > 0 && v.State == api.HealthGood {
		v.State = api.HealthDegraded
	}
	v.Reasons = append(v.Reasons, reasons...)
}

// down adds why it does not work.
func (v *verdict) down(reason string) {
	v.State = api.HealthDown
	v.Reasons = append(v.Reasons, reason)
}

// link says what the interface's frames find.
func (u *Uplink) link() api.LinkState {
	switch {
	case !u.Up:
		return api.LinkDown
	case !u.Carrier:
		return api.LinkNoCarrier
	}
	return api.LinkUp
}

// linkTrouble says why no frame comes by the interface, "" when frames may come.
func (u *Uplink) linkTrouble() string {
	switch u.link() {
	case api.LinkDown:
		return fmt.Sprintf("%s is switched off: 'ip link set dev %s up'", u.Name, u.Name)
	case api.LinkNoCarrier:
		return fmt.Sprintf("%s has no carrier: look at its cable, or at the other end of the veth", u.Name)
	}
	return ""
}

// health of the interface itself, whatever its queues and VMs are like.
func (u *Uplink) health(warnings []string) api.Health {
	v := newVerdict()
	if why := u.linkTrouble(); why != "" {
		v.down(why)
	}
	v.degraded(warnings...)
	return v.Health
}

// queueHealth of one queue. What its interface lacks, it lacks too.
func (u *Uplink) queueHealth(q *Queue) api.Health {
	v := newVerdict()
	if q.Err != nil {
		v.down(u.workerTrouble(q.Err))
	}
	if s := q.Seen; s != nil {
		if n := s.Kernel.RxInvalid + s.Kernel.TxInvalid; n > 0 {
			v.degraded(fmt.Sprintf("%d bad descriptors in its rings: a fault of ours: please report it", n))
		}
		if s.KernelErr != nil {
			v.degraded(fmt.Sprintf("its losses are not known: %v", s.KernelErr))
		}
	}
	if why := u.linkTrouble(); why != "" {
		v.degraded(why)
	}
	return v.Health
}

// workerTrouble says what is wrong with a worker that did not answer, and what to do.
func (u *Uplink) workerTrouble(err error) string {
	return fmt.Sprintf("%v: its frames wait or are lost, but VMs on taps have the kernel's path; 'rscctl detach %s' and attach again, or restart the controller", err, u.Name)
}

// portHealth is what is wrong with a VM. What its interface lacks, it lacks too. p has its warnings.
func (u *Uplink) portHealth(vm *VM, p *api.Port) api.Health {
	v := newVerdict()
	if why := notServed(p); why != "" {
		v.down(why)
	}
	v.degraded(p.Warnings...)
	t := u.totals(vm.Index)
	if n := t.Unexplained(); n != 0 {
		v.degraded(fmt.Sprintf("%d packets are unexplained: a fault of ours: please report it", n))
	}
	if why := u.linkTrouble(); why != "" {
		v.degraded(why)
	}
	return v.Health
}

// notServed says why a port serves no guest, "" when it does.
func notServed(p *api.Port) string {
	switch {
	case p.State == api.PortRunning:
		return ""
	case p.State == api.PortConnected:
		return "its guest's rings do not run: the guest has not loaded its network driver yet, or has stopped it"
	case p.State != api.PortWaiting:
		return fmt.Sprintf("its port is %s: %s", p.State, orUnknown(p.StopReason))
	case p.Tap != "":
		return fmt.Sprintf("nobody has tap %s open: start the VM", p.Tap)
	case p.Mode == api.ModeConnect:
		return fmt.Sprintf("nobody serves %s: start the VM", p.Socket)
	}
	return fmt.Sprintf("no front-end is connected to %s: start the VM with it", p.Socket)
}

func orUnknown(text string) string {
	if text == "" {
		return "nobody knows why"
	}
	return text
}

// Health is that of the whole controller: good when all of it is, and down when it has VMs and serves none. A reason has in front
// of it what it is about. What a VM or a queue only lacks because its interface does, is said once, of the interface.
func Health(st *api.Status) api.Health {
	v := newVerdict()
	v.degraded(st.Warnings...)
	vms, served := len(st.Waiting), 0
	about := func(what string, h api.Health, but []string) {
		for _, r := range h.Reasons {
			if !slices.Contains(but, r) {
				v.degraded(what + ": " + r)
			}
		}
	}
	for i := range st.Interfaces {
		nic := &st.Interfaces[i]
		about(nic.Name, nic.Health, nil)
		for n := range nic.Queues {
			about(fmt.Sprintf("%s/%d", nic.Name, nic.Queues[n].ID), nic.Queues[n].Health, nic.Health.Reasons)
		}
		for n := range nic.Ports {
			p := &nic.Ports[n]
			about(nic.Name+"/"+p.VM, p.Health, nic.Health.Reasons)
			if vms++; p.Health.State != api.HealthDown && nic.Health.State != api.HealthDown {
				served++
			}
		}
	}
	for _, w := range st.Waiting {
		v.degraded(fmt.Sprintf("%s/%s: waits: %s", w.Iface, w.VM, w.Cause))
	}
	if vms > 0 && served == 0 {
		v.State = api.HealthDown
	}
	return v.Health
}
