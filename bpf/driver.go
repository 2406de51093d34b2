package bpf

import (
	"encoding/binary"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The generic netlink family "netdev" (include/uapi/linux/netdev.h, kernel 6.3).
const (
	netdevFamily        = "netdev"
	netdevCmdDevGet     = 1
	netdevAttrIfindex   = 1
	netdevAttrRxMeta    = 5
	netdevRxMetaVLANTag = 1 << 2 // NETDEV_XDP_RX_METADATA_VLAN_TAG, kernel 6.8
)

// tellsVLANTag asks whether the driver answers bpf_xdp_metadata_rx_vlan_tag. Loading alone does not show it: where the
// driver lacks the function the kernel puts one in that always answers EOPNOTSUPP. An older kernel means no.
func tellsVLANTag(ifindex int) bool {
	f, err := netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return false
	}
	req := nl.NewNetlinkRequest(int(f.ID), 0)
	req.AddData(&nl.Genlmsg{Command: netdevCmdDevGet, Version: uint8(f.Version)})
	req.AddData(nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(ifindex))))
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	return err == nil && rxMetaHas(msgs, netdevRxMetaVLANTag)
}

func rxMetaHas(msgs [][]byte, bit uint64) bool {
	for _, m := range msgs {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttrAsMap(m[nl.SizeofGenlmsg:])
		if err != nil {
			continue
		}
		if a, ok := attrs[netdevAttrRxMeta]; ok && len(a.Value) >= 8 {
			return binary.NativeEndian.Uint64(a.Value)&bit != 0
		}
	}
	return false
}
