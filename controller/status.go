package controller

import (
	"fmt"
	"os"
	"slices"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/report"
)

// Status reports the whole controller, or with iface given one interface.
func (c *Controller) Status(iface string) (api.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.statusHead(iface)
	if iface != "" && c.uplinks[iface] == nil && c.waiting[iface] == nil {
		return st, fmt.Errorf("status: %w", c.unknownIface(iface))
	}
	snap, err := c.snapshot(iface)
	st.Interfaces = report.Interfaces(snap)
	st.Health = report.Health(&st)
	return st, err
}

// statusHead is what status says beside the interfaces. The caller holds mu.
func (c *Controller) statusHead(iface string) api.Status {
	st := api.Status{
		Schema: api.Schema, PID: os.Getpid(), Version: c.opt.Version, StartedAt: c.started, State: c.opt.State,
		FlowsPin: c.flowsPin, Warnings: slices.Clone(c.warnings), Interfaces: []api.Interface{}, Waiting: c.waitingList(iface),
	}
	st.Warnings = append(st.Warnings, c.stateWarnings()...)
	if st.Warnings == nil {
		st.Warnings = []string{}
	}
	return st
}
