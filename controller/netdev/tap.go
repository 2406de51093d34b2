package netdev

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TapOffloads is what the reader of a tap, the guest in the end, takes without the kernel finishing it first
// (TUNSETOFFLOAD), as the interface's features show it now. A guest changes it while it runs.
type TapOffloads struct {
	Csum bool // frames whose checksum is partial
	TSO4 bool // TCP over IPv4 larger than the MTU
	TSO6 bool // TCP over IPv6 larger than the MTU
	ECN  bool // of these, such that carry ECN marks
	USO  bool // UDP larger than the MTU, of both families
}

// TapFacts are what is true of a VM's tap at one moment.
type TapFacts struct {
	Name        string
	Index       int // ifindex
	MTU         int // bytes of an IP packet
	MAC         net.HardwareAddr
	MultiQueue  bool
	Queues      int // queues that have a reader
	Master      string
	MasterIndex int  // the bridge it is a port of, 0 if none
	Up          bool // administratively up (IFF_UP)
	Carrier     bool // somebody has the tap open; without, frames for it are dropped
	Offloads    TapOffloads
	TxDropped   uint64 // frames for the guest that were dropped, since the interface was made: the queue was full, or no reader
}

// InspectTap returns the facts of a VM's tap in the calling thread's namespace. See Handle.InspectTap.
func InspectTap(name string) (f *TapFacts, err error) {
	err = With(func(h *Handle) error {
		f, err = h.InspectTap(name)
		return err
	})
	return f, err
}

// InspectTap returns the facts of a VM's tap. Errors: ErrNoDevice, ErrNotTap, ErrNoVnetHdr.
func (h *Handle) InspectTap(name string) (*TapFacts, error) {
	l, err := h.link(name)
	if err != nil {
		return nil, err
	}
	tun, ok := l.(*netlink.Tuntap)
	if !ok || tun.Mode != netlink.TUNTAP_MODE_TAP {
		return nil, fmt.Errorf("interface %s: %w", name, ErrNotTap)
	}
	if tun.Flags&netlink.TUNTAP_VNET_HDR == 0 {
		return nil, fmt.Errorf("interface %s: %w", name, ErrNoVnetHdr)
	}
	a := l.Attrs()
	raw, err := h.linkAttrs(a.Index)
	if err != nil {
		return nil, err
	}
	f := &TapFacts{
		Name: a.Name, Index: a.Index, MTU: a.MTU, MAC: a.HardwareAddr, MasterIndex: a.MasterIndex,
		MultiQueue: tun.Flags&netlink.TUNTAP_MULTI_QUEUE != 0, Queues: tun.Queues,
		Up: a.RawFlags&unix.IFF_UP != 0, Carrier: raw.u8(unix.IFLA_CARRIER) != 0,
	}
	if !f.MultiQueue && f.Carrier {
		f.Queues = 1 // the kernel tells their number of multi-queue taps only
	}
	if a.Statistics != nil {
		f.TxDropped = a.Statistics.TxDropped
	}
	if f.Offloads, err = h.tapOffloads(name); err != nil {
		return nil, err
	}
	if a.MasterIndex > 0 {
		if m, err := h.nl.LinkByIndex(a.MasterIndex); err == nil {
			f.Master = m.Attrs().Name
		}
	}
	return f, nil
}

func (h *Handle) tapOffloads(name string) (o TapOffloads, err error) {
	bits, _, err := h.features(name, "tx-*")
	if err != nil {
		return o, err
	}
	for _, b := range bits {
		switch b.name {
		case "tx-checksum-ip-generic": // drivers/net/tun.c: TUN_F_CSUM is NETIF_F_HW_CSUM
			o.Csum = b.active
		case "tx-tcp-segmentation":
			o.TSO4 = b.active
		case "tx-tcp6-segmentation":
			o.TSO6 = b.active
		case "tx-tcp-ecn-segmentation":
			o.ECN = b.active
		case "tx-udp-segmentation": // TUN_F_USO4 and TUN_F_USO6, which the kernel takes as a pair alone (Linux 6.2)
			o.USO = b.active
		}
	}
	return o, nil
}
