package hook

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
)

// maxConfig bounds a VM's configuration, in bytes.
const maxConfig = 512 << 10

var (
	vmID   = regexp.MustCompile(`^[1-9][0-9]{2,8}$`)
	netKey = regexp.MustCompile(`^net([0-9]|[12][0-9]|3[01])$`)
)

// Phases of a Proxmox VE hookscript.
const (
	PreStart  = "pre-start"
	PostStart = "post-start"
	PreStop   = "pre-stop"
	PostStop  = "post-stop"
)

// ErrPhase is returned for a phase that is none.
var ErrPhase = fmt.Errorf("no such phase: use %s, %s, %s or %s", PreStart, PostStart, PreStop, PostStop)

// CheckProxmox refuses a call that no Proxmox VE makes.
func CheckProxmox(id, phase string) error {
	switch {
	case !vmID.MatchString(id):
		return fmt.Errorf("%q is no VM's number: use 100 to 999999999", id)
	case phase != PreStart && phase != PostStart && phase != PreStop && phase != PostStop:
		return fmt.Errorf("%s: %w", phase, ErrPhase)
	}
	return nil
}

// Proxmox does what one call of a Proxmox VE hookscript stands for, for VM id. The first interface (net0) is called as the VM, 100, and
// another one as the VM with its number, 100i1, as in the names of their taps. form is attached for each interface, with the interface's own
// address, tap, tag and bridge in it; open opens the VM's configuration. All that fails is told to h.Failed, for a VM on its tap works without.
//
// A tap's name is Proxmox VE's word for whose it is, and at this moment there is no other: QEMU's command line is not to be read without
// CAP_SYS_PTRACE, the tap has an address of its own, and the guest has not sent yet.
func (h *Host) Proxmox(ctx context.Context, id, phase string, form api.AttachRequest, open func() (io.ReadCloser, error)) {
	switch phase {
	case PostStart:
		ports, err := proxmoxPorts(ctx, id, form, open)
		if err != nil {
			h.failed(fmt.Errorf("VM %s: %w", id, err))
		}
		h.failed(h.attach(ctx, ports, patience)...)
	case PostStop: // whatever its configuration says by now
		h.failed(h.detach(ctx, id, func(vm api.AttachRequest) bool {
			rest, ok := strings.CutPrefix(vm.VM, id)
			return ok && (rest == "" || strings.HasPrefix(rest, "i") && netKey.MatchString("net"+rest[1:]))
		})...)
	}
}

func proxmoxPorts(ctx context.Context, id string, form api.AttachRequest, open func() (io.ReadCloser, error)) ([]port, error) {
	b, err := readBounded(ctx, maxConfig, func() (io.ReadCloser, error) {
		f, err := open()
		if err != nil {
			return nil, fmt.Errorf("%w: is this the node that runs the VM?", err)
		}
		return f, nil
	})
	if err != nil {
		return nil, err
	}
	return parseProxmox(id, string(b), form)
}

// parseProxmox reads the interfaces of a configuration (qm.conf(5)). What follows a line in brackets is of snapshots, or not in force yet.
// An interface that cannot be read is an error and keeps no other from being there.
func parseProxmox(id, text string, form api.AttachRequest) (ports []port, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			break
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || !netKey.MatchString(key) {
			continue
		}
		p, bad := parseNet(strings.TrimSpace(value), form)
		if bad != nil {
			err = fmt.Errorf("%w: %s: %w", ErrInput, key, bad)
			continue
		}
		if p.bridge == "" { // user-mode networking has no tap
			continue
		}
		n := strings.TrimPrefix(key, "net")
		p.req.VM, p.req.Tap, p.req.TrustTap = id, "tap"+id+"i"+n, true
		if n != "0" {
			p.req.VM += "i" + n
		}
		ports = append(ports, p)
	}
	return ports, err
}

// parseNet reads the value of one interface, such as virtio=BC:24:11:2C:2A:01,bridge=vmbr0,tag=100.
func parseNet(value string, form api.AttachRequest) (port, error) {
	p := port{req: form}
	for field := range strings.SplitSeq(value, ",") {
		key, v, _ := strings.Cut(field, "=")
		switch key {
		case "bridge":
			p.bridge = v
		case "tag":
			tag, err := strconv.ParseUint(v, 10, 12)
			if err != nil {
				return p, fmt.Errorf("tag %q: use 1 to 4094", v)
			}
			p.req.VLAN = int(tag)
		default: // MODEL=MAC, or macaddr=MAC; the other values are no addresses
			if mac, err := net.ParseMAC(v); err == nil && len(mac) == 6 && p.req.MAC == "" {
				p.req.MAC = mac.String()
			}
		}
	}
	if p.req.MAC == "" && p.bridge != "" {
		return p, fmt.Errorf("%q: it has no MAC address", value)
	}
	return p, nil
}
