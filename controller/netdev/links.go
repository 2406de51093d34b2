package netdev

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Link is an interface of a list.
type Link struct {
	Name     string
	Index    int
	Hardware bool // it carries Ethernet frames of a wire, as far as the kernel tells
	Tap      bool // a tun device in tap mode: a VM, most of the time
}

// Links lists all interfaces of the namespace, by index.
func (h *Handle) Links() ([]Link, error) {
	all, err := h.allLinks()
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, l := range all {
		out = append(out, Link{
			Name: l.name, Index: l.index, Tap: l.kind == "tun" && l.tap && !strings.HasPrefix(l.name, wayPrefix),
			Hardware: (l.kind == "" || l.bus) && !l.loopback && l.hardware == unix.ARPHRD_ETHER,
		})
	}
	slices.SortFunc(out, func(a, b Link) int { return a.Index - b.Index })
	return out, nil
}
