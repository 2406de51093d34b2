package controller

import (
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

// Expect puts a VM that could not be attached, for the given cause, on the list of those that wait: it is attached as soon as it can be,
// status shows the cause until then, and detach takes it off. ErrUsage where no host could attach it, ErrTaken where its name or its
// address is another VM's, or where it waits already.
func (c *Controller) Expect(req api.AttachRequest, cause error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.checkRequest(req)
	if err != nil {
		return err
	}
	if err := checkTenant(a.kind, &req, a.policy, a.kept); err != nil {
		return err
	}
	if err := c.checkTaken(req, a.addr); err != nil {
		return err
	}
	c.wait(req.Iface, a.saved(), cause.Error())
	c.retries.failed(req.VM, true, time.Now())
	c.saveInForce()
	return nil
}
