package controller

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/flowtable"
)

// A tap is known by who is behind it, not by its name: proved before every attach, looked at each second and at every event of the link.

// noReader is why nothing is sent to a tap that nobody has open. Whoever opens it next has to be proved.
const noReader = "no VM has the tap open"

// findTap finds the one tap that is proved to be the VM's, and notes its name in the VM's request. The caller holds mu.
func (c *Controller) findTap(v *vmPort, uplink *netdev.Facts, again bool) (err error) {
	mac := net.HardwareAddr(v.addr.MAC[:])
	g := netdev.Guest{MAC: mac, Tap: v.req.Tap, Uplink: uplink.Index, VLAN: v.addr.VLAN, Trust: v.req.TrustTap, Follow: again}
	var proof *netdev.Proof
	if again { // libvirt's own address of the tap mostly does: no need to wait for libvirt each time
		proof, err = netdev.FindGuest(g)
	}
	if proof == nil && v.req.Domain != "" {
		if g.Named, err = netdev.DomainTap(context.Background(), v.req.Domain, mac); err != nil {
			return err
		}
	}
	if proof == nil && (!again || g.Named != "") {
		proof, err = netdev.FindGuest(g)
	}
	if err != nil {
		return err
	}
	for _, u := range c.uplinks {
		for _, other := range u.ports {
			if other.tap != nil && other.tap.facts.Index == proof.Index {
				return fmt.Errorf("tap %s: %w by VM %s: detach that first", proof.Tap, ErrTaken, other.req.VM)
			}
		}
	}
	if proof.Tap != v.req.Tap {
		if v.req.Tap != "" {
			c.log.Info("VM found behind another tap", "vm", v.req.VM, "was", v.req.Tap, "now", proof.Tap, "by", proof.By)
		}
		g.Tap, g.Trust, v.req.TrustTap = proof.Tap, false, false // the operator's word was for the other one
	}
	v.req.Tap, v.tap.guest, v.tap.proof = proof.Tap, g, proof
	return nil
}

// confirm looks again at who is behind the VM's tap. halt is why the kernel's path is the right one for now. The error ends the
// feed: the tap is gone, or somebody has opened it who is not known to be the VM. The caller holds v.mu.
func (v *vmPort) confirm() (halt string, err error) {
	t := v.tap
	proof, err := netdev.ConfirmGuest(t.guest, t.proof)
	switch {
	case err == nil:
		t.proof, t.guest.Tap = proof, proof.Tap
		return "", nil
	case errors.Is(err, netdev.ErrReopened):
		return "", errors.Join(err, v.discard(err))
	case errors.Is(err, netdev.ErrNoDevice):
		return "", err
	}
	return err.Error(), nil // also when it cannot be asked: what is not known is not proved
}

// discard makes the feeds drop what is on its way to a tap behind which somebody else may be.
func (v *vmPort) discard(why error) error {
	return v.up.each(func(q *queue) error { return q.FinishGuest(v.idx, why) })
}

// setHalt notes why nothing is steered, or that it is again. The caller holds v.mu, and puts the policy in force after it.
func (v *vmPort) setHalt(why string) {
	switch {
	case why == v.tap.halt:
	case why == "":
		v.log.Info("VM is steered again", "tap", v.tap.facts.Name)
	default:
		v.log.Warn("VM is left to the kernel's path", "reason", why)
	}
	v.tap.halt = why
}

// rules are tapRules for what the guest takes now, with nothing steered while something is in the way.
func (t *tapGuest) rules(p api.Policy) (flowtable.PortConfig, uint32) {
	cfg, flags := tapRules(p, t.features())
	if t.halt != "" {
		flags = 0
	}
	return cfg, flags
}
