package controller

import (
	"context"
	"errors"
	"net"

	"github.com/rscctl/rscctl/controller/netdev"
)

// A tap is known by who is behind it, not by its name: proved before every attach, looked at each second and at every event of the link.

// noReader is why nothing is sent to a tap that nobody has open. Whoever opens it next has to be proved.
const noReader = "no VM has the tap open"

// find finds the one tap that is proved to be the VM's, and notes its name in the VM's request. The caller holds mu.
func (t *tapKind) find(c *Controller, a *attachment, uplink *netdev.Facts, again bool) (err error) {
	mac := net.HardwareAddr(a.addr.MAC[:])
	g := netdev.Guest{MAC: mac, Tap: a.req.Tap, Uplink: uplink.Index, VLAN: a.addr.VLAN, Trust: a.req.TrustTap, Follow: again}
	var proof *netdev.Proof
	if again { // libvirt's own address of the tap mostly does: no need to wait for libvirt each time
		proof, err = netdev.FindGuest(g)
	}
	if proof == nil && a.req.Domain != "" {
		if g.Named, err = netdev.DomainTap(context.Background(), a.req.Domain, mac); err != nil {
			return err
		}
	}
	if proof == nil && (!again || g.Named != "") {
		proof, err = netdev.FindGuest(g)
	}
	if err != nil {
		return err
	}
	if proof.Tap != a.req.Tap {
		if a.req.Tap != "" {
			c.log.Info("VM found behind another tap", "vm", a.req.VM, "was", a.req.Tap, "now", proof.Tap, "by", proof.By)
		}
		g.Tap, g.Trust, a.req.TrustTap = proof.Tap, false, false // the operator's word was for the other one
	}
	a.req.Tap, t.guest, t.proof = proof.Tap, g, proof
	return nil
}

// confirm looks again at who is behind the VM's tap. halt is why the kernel's path is the right one for now. The error ends the
// feed: the tap is gone, or somebody has opened it who is not known to be the VM. The caller holds a.mu.
func (t *tapKind) confirm(a *attachment, h *netdev.Handle) (halt string, err error) {
	proof, err := h.ConfirmGuest(t.guest, t.proof)
	switch {
	case err == nil:
		t.proof, t.guest.Tap = proof, proof.Tap
		return "", nil
	case errors.Is(err, netdev.ErrReopened):
		return "", errors.Join(err, t.discard(a, err))
	case errors.Is(err, netdev.ErrNoDevice):
		return "", err
	}
	return err.Error(), nil // also when it cannot be asked: what is not known is not proved
}

// discard makes the feeds drop what is on its way to a tap behind which somebody else may be.
func (t *tapKind) discard(a *attachment, why error) error {
	return a.up.each(func(q *queue) error { return q.FinishGuest(a.idx, why) })
}

// setHalt notes why nothing is steered, or that it is again. The caller holds a.mu, and puts the policy in force after it.
func (t *tapKind) setHalt(a *attachment, why string) {
	switch {
	case why == t.halt:
	case why == "":
		a.log.Info("VM is steered again", "tap", t.facts.Name)
	default:
		a.log.Warn("VM is left to the kernel's path", "reason", why)
	}
	t.halt = why
}
