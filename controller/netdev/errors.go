package netdev

import "errors"

var (
	// ErrNoDevice is returned when there is no interface of that name (or index) in the namespace.
	ErrNoDevice = errors.New("no such network interface")
	// ErrNotVeth is returned by VethPeer for an interface of another kind.
	ErrNotVeth = errors.New("not a veth interface")
	// ErrUnreachable is returned when a veth peer lies in a namespace that has no name under /run/netns.
	ErrUnreachable = errors.New("peer lies in a network namespace without a name")
	// ErrNoFeature is returned for an offload that the kernel or the interface does not know.
	ErrNoFeature = errors.New("no such offload")
	// ErrFixed is returned when an offload is wired to its present state.
	ErrFixed = errors.New("offload is fixed by the driver")
	// ErrRefused is returned when the kernel accepted a request and left the offload as it was.
	ErrRefused = errors.New("offload did not change")
	// ErrNotTap is returned for an interface that is not a tun device in tap mode.
	ErrNotTap = errors.New("not a tap interface")
	// ErrNoVnetHdr is returned for a tap whose reader takes no virtio-net header: nothing larger than the MTU can be sent.
	ErrNoVnetHdr = errors.New("the tap has no virtio-net header (IFF_VNET_HDR)")
	// ErrNotBridged is returned when no bridge would bring an uplink's frames to a tap.
	ErrNotBridged = errors.New("no bridge between the uplink and the tap")
)
