// Package hook attaches and detaches a VM's interfaces as the VM starts and stops, when libvirt or Proxmox VE calls.
//
// Who starts VMs waits for a hook, and takes a failure of it for a reason not to start the VM, or to end one that runs. So every call is
// bounded in time, reads a bounded input, and fails for one reason alone: a VM on vhost-user whose socket cannot be had, because its QEMU
// does not start without. Everything else that goes wrong is said, and the VM goes on by the kernel's path.
//
// Nothing here asks libvirt or Proxmox VE for anything: both hold locks on the VM while the hook runs.
package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
)

// ErrInput is returned for a description that cannot be used: it cannot be read, is too large, or contradicts itself.
var ErrInput = errors.New("wrong description")

// Bounds of one call.
const (
	Deadline  = 30 * time.Second       // of all of it, reading the input among it: an attach may wait for a link that flaps
	patience  = 2 * time.Second        // for a controller that starts
	mustWait  = 10 * time.Second       // the same, where the VM cannot start without: at boot VMs are started beside the controller
	retryDial = 100 * time.Millisecond // between two tries
	maxPorts  = 64
)

// Controller is what a hook needs of one. api.Client is one.
type Controller interface {
	Config(context.Context) (*api.Config, error)
	Attach(context.Context, api.AttachRequest) (*api.AttachResponse, error)
	Detach(context.Context, api.DetachRequest) (*api.DetachResponse, error)
}

// Host is where a hook acts.
type Host struct {
	Controller Controller
	WaysIn     func(dev string, vlan uint16) ([]netdev.WayIn, error) // netdev.Handle's
	Done       func(what string, warnings []string)                  // told what was attached and detached; nil: nobody is
	Failed     func(error)                                           // told each failure, unless it is returned
}

// port is one interface of a VM.
type port struct {
	req    api.AttachRequest // without Iface: it is looked for behind bridge
	bridge string
}

// attach attaches ports and returns what failed. It waits for a controller, at most as long as wait. A VM that is served by another way is
// left alone: whose description has its name and address need not be whose VM it is, and a changed way would take its frames.
func (h *Host) attach(ctx context.Context, ports []port, wait time.Duration) (failures []error) {
	end := time.Now().Add(wait)
	var served map[string]api.AttachRequest // asked for once there is something to attach
	for _, p := range ports {
		err := h.locate(&p)
		if err == nil && served == nil {
			served, err = h.served(ctx, end)
		}
		if vm, ok := served[p.req.VM]; err == nil && ok && !sameWay(vm, p.req) {
			err = fmt.Errorf("it is %w by the VM on %s, and was left alone: 'rscctl detach %s --vm %s' first, or choose another name",
				api.ErrTaken, way(vm), vm.Iface, api.ShellWord(vm.VM))
		}
		if err == nil {
			err = patiently(ctx, end, func() error {
				resp, err := h.Controller.Attach(ctx, p.req)
				if err == nil {
					h.done("attached "+p.req.VM+" to "+p.req.Iface, resp.Warnings)
				}
				return err
			})
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("VM %s: %w", p.req.VM, err))
		}
		if errors.Is(err, api.ErrNoController) {
			break // nor is there one for the next
		}
	}
	return failures
}

// locate finds the interface by which a port's frames come in. A bridge that has none to attach is left to the controller, which says why.
func (h *Host) locate(p *port) error {
	switch {
	case p.req.Tap == "" && p.req.VhostUser == "":
		return fmt.Errorf("%w: its interface has neither a tap nor a socket: use one in a bridge, or on vhost-user", ErrInput)
	case p.req.Iface != "":
		return nil
	case p.bridge == "":
		return fmt.Errorf("%w: it is in no bridge that leads to an interface: name the interface", ErrInput)
	}
	ways, err := h.WaysIn(p.bridge, uint16(p.req.VLAN))
	switch {
	case err != nil:
		return err
	case len(ways) > 1:
		return fmt.Errorf("%w: frames for %s come in by %s or %s: name the interface", ErrInput, p.bridge, ways[0].Name, ways[1].Name)
	case len(ways) == 1:
		p.req.Iface, p.req.VLAN = ways[0].Name, int(ways[0].VLAN)
	default:
		p.req.Iface = p.bridge
	}
	return nil
}

// missing are the ports that are not served. Those that are stay as they are: what an operator has switched meanwhile counts.
func (h *Host) missing(ctx context.Context, ports []port) ([]port, error) {
	served, err := h.served(ctx, time.Now().Add(patience))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ports, func(p port) bool {
		_, ok := served[p.req.VM]
		return ok
	}), nil
}

// served are the VMs that are attached and do not wait, by name.
func (h *Host) served(ctx context.Context, end time.Time) (map[string]api.AttachRequest, error) {
	config, err := h.config(ctx, end)
	if err != nil {
		return nil, err
	}
	out := map[string]api.AttachRequest{}
	for _, vm := range config.VMs {
		if !slices.Contains(config.Waiting, vm.VM) {
			out[vm.VM] = vm
		}
	}
	return out, nil
}

// config asks the controller for its VMs, and waits for one until end.
func (h *Host) config(ctx context.Context, end time.Time) (config *api.Config, err error) {
	err = patiently(ctx, end, func() error {
		config, err = h.Controller.Config(ctx)
		return err
	})
	return config, err
}

// sameWay tells whether two requests reach the VM by the same socket or the same tap.
func sameWay(a, b api.AttachRequest) bool {
	return filepath.Clean(a.VhostUser) == filepath.Clean(b.VhostUser) && a.Tap == b.Tap
}

// way names the socket or the tap of a VM.
func way(vm api.AttachRequest) string {
	if vm.VhostUser != "" {
		return "socket " + vm.VhostUser
	}
	return "tap " + vm.Tap
}

// detach takes off the VMs that the controller has and which belong to the VM called name, and returns what failed.
func (h *Host) detach(ctx context.Context, name string, ours func(vm api.AttachRequest) bool) (failures []error) {
	config, err := h.config(ctx, time.Now().Add(patience))
	if err != nil {
		return []error{fmt.Errorf("VM %s: not detached: %w", name, err)}
	}
	for _, vm := range config.VMs {
		if !ours(vm) {
			continue
		}
		switch resp, err := h.Controller.Detach(ctx, api.DetachRequest{Iface: vm.Iface, VM: vm.VM}); {
		case err == nil:
			h.done("detached "+vm.VM+" from "+vm.Iface, resp.Warnings)
		case !errors.Is(err, api.ErrUnknownVM) && !errors.Is(err, api.ErrUnknownIface): // somebody else did it
			failures = append(failures, fmt.Errorf("VM %s: %w", vm.VM, err))
		}
	}
	return failures
}

func (h *Host) done(what string, warnings []string) {
	if h.Done != nil {
		h.Done(what, warnings)
	}
}

func (h *Host) failed(failures ...error) {
	for _, err := range failures {
		h.Failed(err)
	}
}

// patiently tries again until end while there is no controller.
func patiently(ctx context.Context, end time.Time, try func() error) error {
	for {
		err := try()
		if !errors.Is(err, api.ErrNoController) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryDial):
		}
	}
}

// readBounded opens and reads all of an input of at most limit bytes, until ctx ends. A longer one is read to its end too, so that the writer
// is not cut off. A read of a terminal, or of a file system that hangs, cannot be called off: then it ends with the process.
func readBounded(ctx context.Context, limit int64, open func() (io.ReadCloser, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := readAll(limit, open)
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		return r.b, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: it has no end yet: give it from a pipe or a file: %w", ErrInput, context.Cause(ctx))
	}
}

func readAll(limit int64, open func() (io.ReadCloser, error)) ([]byte, error) {
	r, err := open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		_, _ = io.Copy(io.Discard, r)
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrInput, limit)
	}
	return b, nil
}
