package controller

import (
	"errors"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/report"
)

// withoutVMs runs fn while no worker takes anything and no VM is on one: as in a change of hands, after which this very process goes on.
// With an error the uplink's VMs may have no way.
func (c *Controller) withoutVMs(u *uplink, fn func() error) error {
	p := parcel.New(c.opt.Version)
	defer p.Close()
	err := u.each(func(q *queue) error { return q.Suspend(settleWithin) })
	vms := map[*attachment]*packedVM{}
	for _, a := range u.sorted() {
		if err != nil {
			break
		}
		vms[a] = a.packed()
		err = a.kind.pack(a, p, vms[a])
	}
	if err == nil {
		err = fn()
	}
	for a, vm := range vms {
		a.kind.prepare(c, u.facts)
		err = errors.Join(err, buildAgain(a, p, vm))
	}
	return errors.Join(err, u.each((*queue).Resume))
}

// carryCounts keeps what the worker of a queue that goes has counted of the VMs.
func (u *uplink) carryCounts(q *queue) {
	one := report.Uplink{Name: u.name, Queues: []report.Queue{u.lookAt(q)}}
	for _, a := range u.vms {
		sum := carried(one.Counted(&report.VM{Index: a.idx, Port: api.Port{VM: a.req.VM}, Before: a.before}))
		a.before = &sum
	}
}
