package hook

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/apply"
)

// Namespace is that of our element in the metadata of a domain.
const Namespace = "https://github.com/rscctl/rscctl"

// maxXML bounds a domain's XML, in bytes: libvirt itself takes no more.
const maxXML = 4 << 20

// domain is what is read of a domain's XML. Its metadata say what is wanted: libvirt keeps what is there as it is, and hands it on when the
// domain is defined, saved or migrated.
type domain struct {
	XMLName  xml.Name `xml:"domain"`
	Metadata struct {
		Port  []wish `xml:"https://github.com/rscctl/rscctl port"`
		Ports []struct {
			Port []wish `xml:"port"`
		} `xml:"https://github.com/rscctl/rscctl ports"`
	} `xml:"metadata"`
	Interfaces []nic `xml:"devices>interface"`
}

// wish is one <port>: its attributes are named as in apply's file.
type wish struct {
	Attrs []xml.Attr `xml:",any,attr"`
}

// nic is an <interface>.
type nic struct {
	Type string `xml:"type,attr"`
	MAC  struct {
		Address string `xml:"address,attr"`
	} `xml:"mac"`
	Source struct {
		Bridge string `xml:"bridge,attr"`
		Path   string `xml:"path,attr"`
		Mode   string `xml:"mode,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	VLAN struct {
		Trunk string `xml:"trunk,attr"`
		Tags  []struct {
			ID int `xml:"id,attr"`
		} `xml:"tag"`
	} `xml:"vlan"`
}

const (
	vhostUser  = "vhostuser" // a type of interfaces
	modeServer = "server"    // of a socket that QEMU serves
)

// Libvirt does what one call of libvirt's qemu hook stands for: operation and sub are its second and third argument, in is the XML of the
// domain called name. A domain whose metadata has no port of ours is none of ours, and nothing is asked of a controller. The error is that the
// domain cannot start; all else that fails is told to h.Failed. An operation that is not known is passed over, as libvirt may get new ones.
func (h *Host) Libvirt(ctx context.Context, name, operation, sub string, in io.Reader) error {
	b, err := readBounded(ctx, maxXML, func() (io.ReadCloser, error) { return io.NopCloser(in), nil })
	if err != nil {
		h.failed(fmt.Errorf("domain %s: %w", name, err))
		return nil
	}
	operation += " " + sub
	if !slices.Contains([]string{"prepare begin", "started begin", "reconnect begin", "attach begin", "release end"}, operation) {
		return nil
	}
	d, err := parseDomain(b)
	if err != nil {
		h.failed(fmt.Errorf("domain %s: %w", name, err))
		return nil
	}
	wishes := d.wishes()
	if len(wishes) == 0 {
		return nil
	}
	if operation == "release end" {
		names := vmNames(name, wishes)
		h.failed(h.detach(ctx, name, func(vm api.AttachRequest) bool {
			return slices.Contains(names, vm.VM) && slices.ContainsFunc(d.Interfaces, func(n nic) bool { return n.is(vm) })
		})...)
		return nil
	}
	sockets, taps, wrong := d.ports(name, wishes)
	switch operation {
	case "prepare begin": // the sockets that QEMU is about to connect to; there are no taps yet
		failures := h.attach(ctx, sockets, mustWait)
		if len(failures) > 0 || len(wrong) > 0 && d.lacksSocket() {
			return errors.Join(append(wrong, failures...)...)
		}
		h.failed(wrong...)
	case "started begin": // what is wrong was told at prepare
		h.failed(h.attach(ctx, taps, patience)...)
	default: // libvirt has been started anew, or was given a QEMU that runs
		missing, err := h.missing(ctx, append(sockets, taps...))
		if err != nil {
			wrong = append(wrong, fmt.Errorf("VM %s: %w", name, err))
		}
		h.failed(append(wrong, h.attach(ctx, missing, patience)...)...)
	}
	return nil
}

// is tells whether a VM is attached by this interface. Its address and its way count, because a clone has the names of the domain that it was
// made of, and a domain that failed to start is released, too.
func (n *nic) is(vm api.AttachRequest) bool {
	mine, err := net.ParseMAC(n.MAC.Address)
	theirs, bad := net.ParseMAC(vm.MAC)
	return err == nil && bad == nil && bytes.Equal(mine, theirs) && sameWay(vm, n.way())
}

// way is how QEMU is reached by this interface.
func (n *nic) way() api.AttachRequest {
	if n.Type == vhostUser {
		return api.AttachRequest{VhostUser: n.Source.Path}
	}
	return api.AttachRequest{Tap: n.Target.Dev}
}

func parseDomain(b []byte) (*domain, error) {
	dec := xml.NewDecoder(bytes.NewReader(b))
	dec.Strict = true
	var d domain
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("%w: its XML: %w", ErrInput, err)
	}
	return &d, nil
}

func (d *domain) wishes() []wish {
	out := d.Metadata.Port
	for _, p := range d.Metadata.Ports {
		out = append(out, p.Port...)
	}
	return out
}

// lacksSocket tells whether QEMU would find nobody at one of its sockets: then the domain cannot start, whoever should have been there.
func (d *domain) lacksSocket() bool {
	return slices.ContainsFunc(d.Interfaces, func(n nic) bool {
		_, err := os.Lstat(n.Source.Path)
		return n.Type == vhostUser && n.Source.Mode != modeServer && err != nil
	})
}

// vmNames are the VMs' names that wishes lead to.
func vmNames(domain string, wishes []wish) (out []string) {
	for _, w := range wishes {
		vm := domain
		for _, a := range w.Attrs {
			if ours(a) && a.Name.Local == "name" {
				vm = a.Value
			}
		}
		out = append(out, vm)
	}
	return out
}

// ports joins what is wanted with the interfaces that there are: those on vhost-user and those on taps.
func (d *domain) ports(domain string, wishes []wish) (sockets, taps []port, failures []error) {
	fail := func(i int, err error) {
		failures = append(failures, fmt.Errorf("domain %s: %w (port %d of its metadata)", domain, err, i+1))
	}
	if len(wishes) > maxPorts {
		return nil, nil, []error{fmt.Errorf("domain %s: %w: its metadata have %d ports: at most %d are taken", domain, ErrInput, len(wishes), maxPorts)}
	}
	taken := map[string]bool{}
	for i, w := range wishes {
		vm := apply.VM{Name: domain}
		if err := w.read(&vm); err != nil {
			fail(i, err)
			continue
		}
		n, err := d.nic(vm.MAC)
		if err != nil {
			fail(i, err)
			continue
		}
		if taken[vm.Name] {
			fail(i, fmt.Errorf("%w: two ports are called %s: give one another name='...'", ErrInput, vm.Name))
			continue
		}
		taken[vm.Name] = true
		vm.MAC = n.MAC.Address
		if n.VLAN.Trunk != "yes" && len(n.VLAN.Tags) == 1 && vm.VLAN == 0 {
			vm.VLAN = n.VLAN.Tags[0].ID
		}
		if n.Type == vhostUser {
			if vm.Iface == "" {
				fail(i, fmt.Errorf("%w: an interface on vhost-user is in no bridge: say iface='...'", ErrInput))
				continue
			}
			vm.VhostUser, vm.Connect = n.Source.Path, n.Source.Mode == modeServer
			sockets = append(sockets, port{req: vm.Request()})
			continue
		}
		vm.Tap = n.Target.Dev
		taps = append(taps, port{req: vm.Request(), bridge: n.Source.Bridge})
	}
	return sockets, taps, failures
}

func (w wish) read(vm *apply.VM) error {
	for _, a := range w.Attrs {
		if !ours(a) {
			continue
		}
		if err := vm.Set(a.Name.Local, a.Value); err != nil {
			return err
		}
	}
	return nil
}

// ours tells our attributes, with our prefix or without, from others' and from declarations of namespaces.
func ours(a xml.Attr) bool {
	return a.Name.Space == Namespace || a.Name.Space == "" && a.Name.Local != "xmlns"
}

// nic finds an interface by its address, or the only one.
func (d *domain) nic(mac string) (*nic, error) {
	if mac == "" {
		if len(d.Interfaces) != 1 {
			return nil, fmt.Errorf("%w: the domain has %d interfaces: say mac='...'", ErrInput, len(d.Interfaces))
		}
		return &d.Interfaces[0], nil
	}
	want, err := net.ParseMAC(mac)
	if err != nil {
		return nil, fmt.Errorf("%w: mac %q: use six bytes like 52:54:00:12:34:56", ErrInput, mac)
	}
	for i := range d.Interfaces {
		if strings.EqualFold(d.Interfaces[i].MAC.Address, want.String()) {
			return &d.Interfaces[i], nil
		}
	}
	return nil, fmt.Errorf("%w: the domain has no interface %s", ErrInput, mac)
}
