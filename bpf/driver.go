package bpf

import (
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
)

// The kernel's own way to ask for a tag that the driver took out of a frame is bpf_xdp_metadata_rx_vlan_tag, for programs
// loaded with BPF_F_XDP_DEV_BOUND_ONLY. It is not used: the kernel keeps a pointer to such a program with the device
// (struct bpf_prog_offload in kernel/bpf/offload.c), and does not move it along when the verifier's patches make the
// program grow into new memory. When the device goes away before the program, it follows the stale pointer: seen on
// 6.18, an oops in __bpf_prog_offload_destroy under the rtnl lock, which stops all network configuration until a reboot.

// tagOffsets says where a veth in native mode keeps a frame's tag. The zero value: nowhere we know of.
type tagOffsets struct {
	skb  uint32 // from the program's context to the pointer to the skb
	vlan uint32 // in the skb, vlan_all
}

// vethTagOffsets looks the offsets up in the kernel's types: struct veth_xdp_buff (drivers/net/veth.c, Linux 6.3) begins
// with the xdp_buff that the program gets as its context.
func vethTagOffsets() (at tagOffsets, ok bool) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return at, false
	}
	var skb *btf.Struct
	if err := kernel.TypeByName("sk_buff", &skb); err != nil {
		return at, false
	}
	vlan, ok := memberOffset(skb.Members, "vlan_all")
	if !ok {
		return at, false
	}
	var buff *btf.Struct
	if err := kernel.TypeByName("veth_xdp_buff", &buff); err != nil {
		module, err := btf.LoadKernelModuleSpec("veth")
		if err != nil || module.TypeByName("veth_xdp_buff", &buff) != nil {
			return at, false
		}
	}
	xdp, okXDP := memberOffset(buff.Members, "xdp")
	ptr, okPtr := memberOffset(buff.Members, "skb")
	if !okXDP || !okPtr || xdp != 0 || ptr == 0 {
		return at, false
	}
	return tagOffsets{skb: ptr, vlan: vlan}, true
}

// memberOffset finds a member in a struct or in the anonymous structs and unions inside it, in bytes.
func memberOffset(members []btf.Member, name string) (uint32, bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if off, ok := memberOffset(inner, name); ok {
			return m.Offset.Bytes() + off, true
		}
	}
	return 0, false
}

func isVeth(ifindex int) bool {
	l, err := netlink.LinkByIndex(ifindex)
	return err == nil && l.Type() == "veth"
}
