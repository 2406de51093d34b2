package netdev

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Generic netlink names (linux/ethtool_netlink.h, linux/netdev.h).
const (
	ethtoolFamily  = unix.ETHTOOL_GENL_NAME
	ethtoolMonitor = unix.ETHTOOL_MCGRP_MONITOR_NAME // announces changes made through ethtool's netlink side
	netdevFamily   = "netdev"
)

// Of linux/netdev.h: NETDEV_CMD_DEV_GET (Linux 6.3) with its attributes and bits of enum netdev_xdp_act; NETDEV_CMD_QUEUE_GET
// (Linux 6.8), its attributes, and the type of an RX queue.
const (
	netdevDevGet         = 1
	netdevDevIfindex     = 1
	netdevDevXDPFeatures = 3
	xdpActBasic          = 1 << 0
	xdpActRedirect       = 1 << 1
	xdpActZeroCopy       = 1 << 3

	netdevQueueGet     = 10
	netdevQueueID      = 1
	netdevQueueIfindex = 2
	netdevQueueType    = 3
	netdevQueueTypeRx  = 0
)

// genlHeader is struct genlmsghdr of linux/genetlink.h: command, version 1 and two reserved bytes, which have to be zero for families
// that are younger than Linux 6.1 (genl_header_check). The netlink package's Genlmsg has no room for them, and sends what lies
// behind it in memory.
type genlHeader uint8

func (h genlHeader) Len() int          { return nl.SizeofGenlmsg }
func (h genlHeader) Serialize() []byte { return []byte{byte(h), 1, 0, 0} }

// XDPFeatures are what a driver says of itself: NETDEV_A_DEV_XDP_FEATURES (enum netdev_xdp_act of linux/netdev.h, Linux 6.3). What
// a driver can do may depend on its settings of the moment.
type XDPFeatures uint64

// Native tells whether the driver runs XDP programs and redirects to AF_XDP sockets itself; without, both are done for it by the
// kernel's generic XDP.
func (f XDPFeatures) Native() bool {
	return f&xdpActBasic != 0 && f&xdpActRedirect != 0
}

// ZeroCopy tells whether AF_XDP sockets may share the driver's buffers.
func (f XDPFeatures) ZeroCopy() bool { return f&xdpActZeroCopy != 0 }

// XDPFeatures asks an interface's driver. An error: the kernel is too old to ask, or the interface is gone.
func (h *Handle) XDPFeatures(index int) (XDPFeatures, error) {
	f, err := h.nl.GenlFamilyGet(netdevFamily)
	if err != nil {
		return 0, fmt.Errorf("netlink: family %s: %w", netdevFamily, err)
	}
	req := nl.NewNetlinkRequest(int(f.ID), 0)
	req.Sockets = h.raw
	req.AddData(genlHeader(netdevDevGet))
	req.AddData(nl.NewRtAttr(netdevDevIfindex, nl.Uint32Attr(uint32(index))))
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("netlink: XDP features of %d: %w", index, err)
	}
	if len(msgs) != 1 || len(msgs[0]) < nl.SizeofGenlmsg {
		return 0, fmt.Errorf("netlink: XDP features of %d: %w", index, unix.ENODEV)
	}
	v, ok := parseAttrs(msgs[0][nl.SizeofGenlmsg:])[netdevDevXDPFeatures]
	if !ok || len(v) < 8 {
		return 0, fmt.Errorf("netlink: XDP features of %d: %w", index, unix.EOPNOTSUPP)
	}
	return XDPFeatures(binary.NativeEndian.Uint64(v)), nil
}

// genlGroup is the number of a generic netlink family's multicast group.
func (h *Handle) genlGroup(family, group string) (int, error) {
	f, err := h.nl.GenlFamilyGet(family)
	if err != nil {
		return 0, fmt.Errorf("netlink: family %s: %w", family, err)
	}
	for _, g := range f.Groups {
		if g.Name == group {
			return int(g.ID), nil
		}
	}
	return 0, fmt.Errorf("netlink: family %s: group %s: %w", family, group, unix.ENOENT)
}

// netdevRxQueues counts an interface's RX queues in use by listing them. The kernel lists none while it is down.
func (h *Handle) netdevRxQueues(index int) (int, error) {
	f, err := h.nl.GenlFamilyGet(netdevFamily)
	if err != nil {
		return 0, fmt.Errorf("netlink: family %s: %w", netdevFamily, err)
	}
	req := nl.NewNetlinkRequest(int(f.ID), unix.NLM_F_DUMP)
	req.Sockets = h.raw
	req.AddData(genlHeader(netdevQueueGet))
	req.AddData(nl.NewRtAttr(netdevQueueIfindex, nl.Uint32Attr(uint32(index))))
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("netlink: queues of %d: %w", index, err)
	}
	n := 0
	for _, m := range msgs {
		if isRxQueue(m, index) {
			n++
		}
	}
	return n, nil
}

func isRxQueue(m []byte, index int) bool {
	if len(m) < nl.SizeofGenlmsg {
		return false
	}
	attrs, err := nl.ParseRouteAttrAsMap(m[nl.SizeofGenlmsg:])
	if err != nil {
		return false
	}
	is := func(attr uint16, want uint32) bool {
		v := attrs[attr].Value
		return len(v) == 4 && binary.NativeEndian.Uint32(v) == want
	}
	_, numbered := attrs[netdevQueueID]
	return numbered && is(netdevQueueIfindex, uint32(index)) && is(netdevQueueType, netdevQueueTypeRx)
}
