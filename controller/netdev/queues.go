package netdev

import "github.com/vishvananda/netlink"

// rxQueues is the number of receive queues in use.
//
// IFLA_NUM_RX_QUEUES is what was allocated, not what is used, so the driver's channels come first: a queue is either an
// RX channel or one half of a combined one (linux/ethtool.h, struct ethtool_channels). Then the kernel's own list of
// queues (Linux 6.8; empty while the interface is down). A driver with neither has, as a rule, a fixed number.
func (h *Handle) rxQueues(a *netlink.LinkAttrs, c channels) int {
	if n := c.rx + c.combined; n > 0 {
		return int(n)
	}
	if n, err := h.netdevRxQueues(a.Index); err == nil && n > 0 {
		return n
	}
	return max(a.NumRxQueues, 1)
}

// txQueues is the number of transmit queues in use, where the driver tells its channels; otherwise of those allocated.
func txQueues(a *netlink.LinkAttrs, c channels) int {
	if n := c.tx + c.combined; n > 0 {
		return int(n)
	}
	return max(a.NumTxQueues, 1)
}
