package netdev

import (
	"fmt"

	"github.com/rscctl/rscctl/controller/netns"
	"github.com/vishvananda/netlink"
)

// Peer is the other end of a veth pair.
type Peer struct {
	Name      string // "" when it cannot be reached
	Index     int    // ifindex in its own namespace
	NSPath    string // file of its namespace under /run/netns; "" when it is the same one or cannot be reached
	Reachable bool
}

// VethPeer finds the other end of a veth interface, in the calling thread's namespace.
func VethPeer(name string) (p *Peer, err error) {
	err = With(func(h *Handle) error {
		p, err = h.VethPeer(name)
		return err
	})
	return p, err
}

// VethPeer finds the other end of a veth interface: in the same namespace, or in one named under /run/netns. A peer
// elsewhere (a container without a named namespace, another mount namespace's names) is returned with Reachable false
// and no error. ErrNotVeth for other kinds.
func (h *Handle) VethPeer(name string) (*Peer, error) {
	l, err := h.link(name)
	if err != nil {
		return nil, err
	}
	if l.Type() != "veth" {
		return nil, fmt.Errorf("interface: %s: %w", name, ErrNotVeth)
	}
	a := l.Attrs()
	p := &Peer{Index: a.ParentIndex} // IFLA_LINK
	if a.NetNsID < 0 {               // no IFLA_LINK_NETNSID: the same namespace
		peer, err := h.nl.LinkByIndex(p.Index)
		if err != nil {
			return nil, linkError(fmt.Sprintf("peer of %s", name), err)
		}
		p.Name, p.Reachable = peer.Attrs().Name, true
		return p, nil
	}
	// IFLA_LINK_NETNSID is this namespace's own number for the other one; RTM_GETNSID translates an open file to it.
	ns, err := netns.ByFile(func(n *netns.NS) bool {
		id, err := h.nl.GetNetNsIdByFd(n.FD())
		return err == nil && id == a.NetNsID
	})
	if err != nil || ns == "" {
		return p, err
	}
	p.NSPath = netns.Dir + "/" + ns
	err = p.Do(func(there *Handle) error {
		peer, err := there.nl.LinkByIndex(p.Index)
		if err != nil {
			return linkError(fmt.Sprintf("peer of %s", name), err)
		}
		// Two namespaces may have the same index: only a veth that points back is the peer.
		if _, ok := peer.(*netlink.Veth); !ok || peer.Attrs().ParentIndex != a.Index {
			return fmt.Errorf("interface: peer of %s: %w", name, ErrNoDevice)
		}
		p.Name, p.Reachable = peer.Attrs().Name, true
		return nil
	})
	return p, err
}

// Do runs fn with a handle in the peer's namespace, on a thread that is in it, or returns ErrUnreachable. The handle is
// closed afterwards.
func (p *Peer) Do(fn func(there *Handle) error) error {
	if p.NSPath == "" {
		if !p.Reachable {
			return fmt.Errorf("veth peer: %w", ErrUnreachable)
		}
		return With(fn)
	}
	ns, err := netns.Open(p.NSPath)
	if err != nil {
		return fmt.Errorf("veth peer: %w", err)
	}
	defer ns.Close()
	return ns.Do(func() error { return With(fn) })
}

// Offload is Handle.Offload of the peer.
func (p *Peer) Offload(feature string) (on, fixed bool, err error) {
	err = p.Do(func(there *Handle) error {
		on, fixed, err = there.Offload(p.Name, feature)
		return err
	})
	return on, fixed, err
}

// ChangeOffload is Handle.ChangeOffload of the peer.
func (p *Peer) ChangeOffload(feature string, on bool) (c Change, err error) {
	err = p.Do(func(there *Handle) error {
		c, err = there.ChangeOffload(p.Name, feature, on)
		return err
	})
	return c, err
}

// UndoOffload is Handle.UndoOffload of the peer.
func (p *Peer) UndoOffload(c Change) error {
	return p.Do(func(there *Handle) error { return there.UndoOffload(p.Name, c) })
}
