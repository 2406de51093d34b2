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

// Of linux/netdev.h (Linux 6.8): NETDEV_CMD_QUEUE_GET, its attributes, and the type of an RX queue.
const (
	netdevQueueGet     = 10
	netdevQueueID      = 1
	netdevQueueIfindex = 2
	netdevQueueType    = 3
	netdevQueueTypeRx  = 0
)

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
	req.AddData(&nl.Genlmsg{Command: netdevQueueGet, Version: 1})
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
