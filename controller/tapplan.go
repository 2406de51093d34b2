package controller

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rscctl/rscctl/controller/netdev"
)

// planTap finds a VM's tap and looks at the kernel path that its frames will no longer take. It changes nothing of the host.
func (c *Controller) planTap(v *vmPort, uplink *netdev.Facts, again bool) (warnings []string, err error) {
	t := v.tap
	if v.req.Tap != "" && !again { // what was named must be a VM's tap, whoever's it is
		if t.facts, err = inspectTap(v.req.Tap); err != nil {
			return nil, err
		}
	}
	if err := c.findTap(v, uplink, again); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	req := v.req
	if t.facts, err = inspectTap(req.Tap); err != nil {
		return nil, err
	}
	if t.facts.Index != t.proof.Index {
		return nil, fmt.Errorf("attach: tap %s: %w: it was made anew meanwhile: try again", req.Tap, netdev.ErrUnproved)
	}
	t.dropped = t.facts.TxDropped
	if err := t.findBridge(uplink.Index, v.addr.VLAN); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if t.bypassed, err = netdev.Bypassed(uplink.Index, t.facts.Index, t.bridge); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	switch {
	case len(t.bypassed) == 0:
	case !req.Bypass:
		return nil, fmt.Errorf("attach: tap %s: %w: %s: remove them, or attach with --bypass-filters", req.Tap, ErrFiltered, strings.Join(t.bypassed, "; "))
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
	if t.bridge == nil {
		warnings = append(warnings, fmt.Sprintf("tap %s and %s are not in one bridge: nothing here brings the VM's other traffic to it", req.Tap, uplink.Name))
	}
	return warnings, nil
}

// inspectTap looks at a tap and says what kind of one a VM needs.
func inspectTap(name string) (*netdev.TapFacts, error) {
	f, err := netdev.InspectTap(name)
	switch {
	case errors.Is(err, netdev.ErrNoVnetHdr):
		return nil, fmt.Errorf("attach: %w: start the VM with a virtio NIC and vnet_hdr=on, QEMU's default", err)
	case err != nil:
		return nil, fmt.Errorf("attach: %w: name the tap of the VM's netdev, in the namespace that rscctl runs in", err)
	}
	return f, nil
}

// findBridge looks for the bridge between the uplink and the tap. That there is none is no error.
func (t *tapGuest) findBridge(uplink int, vlan uint16) (err error) {
	t.bridge, err = netdev.FindPorts(uplink, vlan, t.facts.Index)
	if errors.Is(err, netdev.ErrNotBridged) {
		t.bridge, err = nil, nil
	}
	return err
}

// tapChanges says what attach does for a VM on its own tap.
func tapChanges(v *vmPort) []string {
	return []string{
		fmt.Sprintf("attach a TC program to tap %s, which counts what the VM sends", v.req.Tap),
		fmt.Sprintf("TCP frames for %s come to tap %s through rscctl instead of the kernel's path, while the policy coalesces", v.req.MAC, v.req.Tap),
	}
}
