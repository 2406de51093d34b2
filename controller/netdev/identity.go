package netdev

import (
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity tells an interface from others for as long as the machine runs, whatever its name. It can be stored as JSON.
type Identity struct {
	Index     int    `json:"ifindex"`
	Permanent string `json:"permanent_mac,omitempty"` // IFLA_PERM_ADDRESS; "" for an interface that has none, as a veth
	Boot      string `json:"boot_id,omitempty"`
}

// Identify returns the identity of the interface with that name, or ErrNoDevice.
func (h *Handle) Identify(name string) (Identity, error) {
	l, err := h.link(name)
	if err != nil {
		return Identity{}, err
	}
	id, _, err := h.identify(l.Attrs().Index)
	return id, err
}

// identify also returns the name that the interface has at the same moment.
func (h *Handle) identify(index int) (id Identity, name string, err error) {
	a, err := h.linkAttrs(index)
	if err != nil {
		return id, "", err
	}
	id = Identity{Index: index, Permanent: net.HardwareAddr(a[unix.IFLA_PERM_ADDRESS]).String()}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		id.Boot = strings.TrimSpace(string(b))
	}
	return id, a.text(unix.IFLA_IFNAME), nil
}

// NameOf returns the name that the interface has now. ErrNoDevice when it is gone: nothing has its index, or another
// interface, or the machine has started since, which also undid what had been set there.
func (h *Handle) NameOf(id Identity) (string, error) {
	now, name, err := h.identify(id.Index)
	if err != nil {
		return "", err
	}
	if now != id {
		return "", fmt.Errorf("interface: index %d: %w: it is another one by now", id.Index, ErrNoDevice)
	}
	return name, nil
}
