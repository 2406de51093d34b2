package controller

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rscctl/rscctl/controller/netdev"
)

// plan finds a VM's tap and looks at the kernel path that its frames will no longer take.
func (t *tapKind) plan(c *Controller, a *attachment, uplink *netdev.Facts, again bool) (changes, warnings []string, err error) {
	if a.req.Tap != "" && !again { // what was named must be a VM's tap, whoever's it is
		if t.facts, err = inspectTap(a.req.Tap); err != nil {
			return nil, nil, err
		}
	}
	if err := t.find(c, a, uplink, again); err != nil {
		return nil, nil, fmt.Errorf("attach: %w", err)
	}
	req := a.req
	if t.facts, err = inspectTap(req.Tap); err != nil {
		return nil, nil, err
	}
	if t.facts.Index != t.proof.Index {
		return nil, nil, fmt.Errorf("attach: tap %s: %w: it was made anew meanwhile: try again", req.Tap, netdev.ErrUnproved)
	}
	t.dropped = t.facts.TxDropped
	rules, err := c.rules.Read()
	if err == nil {
		err = netdev.With(func(h *netdev.Handle) error { return t.readPath(h, rules, uplink.Index, a.addr.VLAN) })
	}
	if err != nil {
		return nil, nil, fmt.Errorf("attach: %w", err)
	}
	switch {
	case len(t.bypassed) == 0:
	case !req.Bypass:
		return nil, nil, fmt.Errorf("attach: tap %s: %w: %s: mend that, or attach with --bypass-filters", req.Tap, ErrFiltered, strings.Join(t.bypassed, "; "))
	default:
		for _, s := range t.bypassed {
			warnings = append(warnings, "bypassed: "+s)
		}
	}
	if !t.facts.Carrier {
		t.halt = noReader
		warnings = append(warnings, fmt.Sprintf("no VM has tap %s open yet", req.Tap))
	}
	if t.facts.MTU < uplink.MTU {
		warnings = append(warnings, fmt.Sprintf("the MTU of tap %s is %d, that of %s is %d: longer frames that are not merged are dropped", req.Tap, t.facts.MTU, uplink.Name, uplink.MTU))
	}
	return tapChanges(a), warnings, nil
}

// inspectTap looks at a tap and says what kind of one a VM needs.
func inspectTap(name string) (*netdev.TapFacts, error) {
	f, err := netdev.InspectTap(name)
	switch {
	case errors.Is(err, netdev.ErrNoVnetHdr):
		return nil, fmt.Errorf("attach: %w: start the VM with a virtio NIC and vnet_hdr=on, QEMU's default", err)
	case err != nil:
		return nil, fmt.Errorf("attach: %w: %sname the tap of the VM's netdev, in the namespace that rscctl runs in", err, likeLink(name, err))
	}
	return f, nil
}

// readPath finds the bridge between the uplink and the tap, nil for none, and what of the kernel's path the frames no longer take.
func (t *tapKind) readPath(h *netdev.Handle, rules *netdev.Rules, uplink int, vlan uint16) error {
	bridge, err := h.FindPorts(uplink, vlan, t.facts.Index)
	if err != nil && !errors.Is(err, netdev.ErrNotBridged) {
		return err
	}
	bypassed, err := rules.Bypassed(h, uplink, t.facts.Index, bridge)
	if err != nil {
		return err
	}
	t.bridge, t.bypassed = bridge, bypassed
	return nil
}

// filtered looks again at the kernel's path, and says why it is the right one for now: rules have come that the operator has not
// agreed to bypass. The caller holds a.mu.
func (t *tapKind) filtered(a *attachment, look *look, h *netdev.Handle) (halt string) {
	rules, err := look.hostRules()
	if err != nil {
		return err.Error() // what is not known may be a filter
	}
	was := t.bypassed
	if err := t.readPath(h, rules, a.up.facts.Index, a.addr.VLAN); err != nil {
		return "what is on its path cannot be read: " + err.Error() // what is not known may be a filter
	}
	switch now := strings.Join(t.bypassed, "; "); {
	case now == "":
		return ""
	case a.req.Bypass:
		if now != strings.Join(was, "; ") {
			a.log.Warn("rules on the VM's path are bypassed", "rules", now)
		}
		return ""
	default:
		return fmt.Sprintf("%v: %s: mend that, or attach again with --bypass-filters", ErrFiltered, now)
	}
}

// tapChanges says what attach does for a VM on its own tap.
func tapChanges(a *attachment) []string {
	return []string{
		fmt.Sprintf("attach a TC program to tap %s, which counts what the VM sends", a.req.Tap),
		fmt.Sprintf("TCP frames for %s, and UDP where its guest takes superframes of it, come to tap %s through rscctl instead of the kernel's path, while the policy coalesces", a.req.MAC, a.req.Tap),
	}
}
