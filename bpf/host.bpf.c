//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */

/*
 * The TC programs by which the VMs of an interface and its host are neighbours. A device of ours, with packet
 * sockets of the controller on it, is the way between: what the host sends to a VM is turned into the device's ingress, where the controller
 * reads it, and what the controller sends by the device is turned into the interface's ingress, where the host sees it as come in from the wire.
 */

#define RSC_SKB
#include "abi.h"
#include "parse.h"

char __license[] SEC("license") = "Dual BSD/GPL";

#define VLAN_ID 0x0fff

/* Constants, because they hold for the programs' whole life. */
const volatile u32 uplink = 0; /* ifindex of the interface that VMs are attached to */
const volatile u32 way = 0;    /* ifindex of the device of ours */
const volatile u32 takes_uso = 0; /* 1: a packet socket has a word for a train of UDP datagrams (Linux 6.2) */

/* The addresses of VMs that have the host as a neighbour, and for each VLAN with such a VM one row with the broadcast address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_HOST_ROWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, u32);
} neighbours SEC(".maps");

/* Frames by host_outcome. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUM_HOST_OUTCOMES);
	__type(key, u32);
	__type(value, u64);
} outcomes SEC(".maps");

static __always_inline void count(u32 outcome)
{
	u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n)
		*n += 1; /* per CPU; two of a CPU at once, one of them in an interrupt, may count one too few */
}

struct head {
	u8 dst[6];
	u8 src[6];
	u8 type[2];
	u8 tci[2];
	u8 inner[2];
};

static __always_inline int is_tag(u16 type)
{
	return type == ETH_P_8021Q || type == ETH_P_8021AD;
}

/* The VLAN of a frame that the host sends, or -1 when no VM can be in it. */
static __always_inline int vlan_of(const struct __sk_buff *skb, const struct head *h)
{
	u16 type = be16(h->type);

	if (skb->vlan_present) {
		if (skb->vlan_proto != bpf_htons(ETH_P_8021Q) || is_tag(type))
			return -1;
		return skb->vlan_tci & VLAN_ID;
	}
	if (!is_tag(type))
		return 0;
	if (type != ETH_P_8021Q || is_tag(be16(h->inner)))
		return -1;
	return be16(h->tci) & VLAN_ID;
}

/* 01:80:c2:00:00:00 to 2f: what switches and their neighbours say to one another (IEEE 802.1Q, 8.6.3), which no VM hears. */
static __always_inline int is_link_local(const u8 *mac)
{
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && mac[3] == 0 && mac[4] == 0 && mac[5] < 0x30;
}

/* The ends of tunnels, whose frames stand for packets inside others: flowtable/rules_udp.go has the same. */
static __always_inline int is_tunnel(u16 port)
{
	return port == 4789 || port == 8472 || port == 6081 || port == 6635;
}

/*
 * Tells whether a packet socket can say what a superframe stands for (virtio_net_hdr_from_skb: TCP right behind the IP header, and UDP by newer
 * kernels). A frame of another kind would be lost in front of the socket (UDP, SCTP, IP fragments), or be taken for the TCP of its inside (tunnels).
 */
static __always_inline int has_words(struct __sk_buff *skb)
{
	word buf[1 + IPV6_LEN / 8] = {};
	struct frame f = { skb, (u8 *)buf + 4, skb->len };
	struct info i = {};
	struct flow_key k = {};

	if (!take_ether(&f, &i))
		return 0;
	take_ip(&f, &i, &k);
	if (i.keyed)
		return i.family == 4 || i.l4 == i.l3 + IPV6_LEN;
	return takes_uso && is_datagram(&f, &i, &k) && !is_tunnel(k.dst_port);
}

/* On the interface's egress, where the host's frames still are whole. */
SEC("tc")
int rsc_host_out(struct __sk_buff *skb)
{
	struct port_key key = {};
	struct head h = {};
	u64 flags = BPF_F_INGRESS;
	int vlan, n;
	u32 mark;

	if (skb->mark == HOST_MARK) { /* a VM's, from a socket of ours */
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) && bpf_skb_load_bytes(skb, 0, &h, 14))
		return TC_ACT_UNSPEC;
	vlan = vlan_of(skb, &h);
	if (vlan < 0)
		return TC_ACT_UNSPEC;
	key.vlan = (u16)vlan;
	for (n = 0; n < 6; n++)
		key.mac[n] = h.dst[0] & 1 ? 0xff : h.dst[n];
	if (!bpf_map_lookup_elem(&neighbours, &key))
		return TC_ACT_UNSPEC;
	if (is_link_local(h.dst))
		return TC_ACT_UNSPEC;
	mark = skb->mark;
	if (skb->gso_size && !has_words(skb)) { /* by the egress, behind which a device without offloads has it cut */
		skb->mark = HOST_CUT_MARK;
		flags = 0;
	}
	if (!(h.dst[0] & 1)) {
		count(H_TO_VM);
		return (int)bpf_redirect(way, flags);
	}
	count(bpf_clone_redirect(skb, way, flags) ? H_LOST : H_GROUP_TO_VM);
	skb->mark = mark;
	return TC_ACT_UNSPEC;
}

/* On the interface's ingress, behind packet sockets and in front of all else: the mark is nobody else's to see. */
SEC("tc")
int rsc_host_in(struct __sk_buff *skb)
{
	if (skb->mark == HOST_MARK) {
		count(H_TO_HOST);
		skb->mark = 0;
	}
	return TC_ACT_UNSPEC;
}

/* On our device's egress. What is not the controller's, say of a program that speaks on every interface, goes nowhere. */
SEC("tc")
int rsc_way_out(struct __sk_buff *skb)
{
	if (skb->mark == HOST_CUT_MARK) { /* goes on, is cut, and is seen by the controller's packet socket; nobody reads the device */
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	if (skb->mark != HOST_MARK)
		return TC_ACT_SHOT;
	return (int)bpf_redirect(uplink, BPF_F_INGRESS);
}

/* On our device's ingress, behind the controller's packet socket: the host is not to take its own frames for others'. */
SEC("tc")
int rsc_way_in(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_SHOT;
}
