//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */

/*
 * The TC program of one VM's tap, where the host receives what the VM sends: it counts the VM's TCP flows towards the wire.
 * It neither changes a frame nor decides about it.
 */

#define RSC_SKB
#include "abi.h"
#include "flows.h"
#include "parse.h"

char __license[] SEC("license") = "Dual BSD/GPL";

#define VLAN_ID 0x0fff

/*
 * Whose tap this is. Constants, because they hold for the program's whole life and each tap loads its own: nothing is
 * looked up per frame, and no row can be missing.
 */
const volatile u16 vlan = 0;
const volatile u8 guest[6] = {};

/* The VM's flows, which the XDP program counts in the other direction. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow_stats);
} flows SEC(".maps");

/* Frames by tap_outcome. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUM_TAP_OUTCOMES);
	__type(key, u32);
	__type(value, u64);
} outcomes SEC(".maps");

static __always_inline int is_guest(const u8 *mac)
{
	int n;

	for (n = 0; n < 6; n++) {
		if (mac[n] != guest[n])
			return 0;
	}
	return 1;
}

static __always_inline enum tap_outcome look(struct __sk_buff *skb)
{
	word buf[1 + IPV6_LEN / 8] = {};
	struct frame f = { skb, (u8 *)buf + 4, skb->len };
	struct info i = {};
	struct flow_key fk = {};
	struct flow_counts c = {};
	u32 n, headers, outer = 0;
	u16 tci;

	if (!peek(&f, 0, ETH_LEN) || !is_guest(f.buf + 6))
		return T_FOREIGN_MAC;
	/* A tag is kept beside the frame (__netif_receive_skb_core takes it out before TC), so a tag inside is a second one. */
	if (skb->vlan_present && skb->vlan_proto != bpf_htons(ETH_P_8021Q))
		return T_FOREIGN_TAG;
	if (!take_ether(&f, &i))
		return i.verdict == V_VLAN_STACK ? T_FOREIGN_TAG : T_NO_FLOW;
	tci = skb->vlan_present ? (u16)skb->vlan_tci : i.tci;
	if (tci & VLAN_ID || (skb->vlan_present && i.tagged))
		return T_FOREIGN_TAG;
	take_ip(&f, &i, &fk);
	if (!i.keyed)
		return T_NO_FLOW;
	fk.dir = DIR_TO_WIRE;

	/* On the wire each segment has the headers of the first, and a tag if there is one beside the frame or the VLAN adds it. */
	if (!i.tagged && (vlan || skb->vlan_present))
		outer = TAG_LEN;
	n = segments(skb, &i);
	headers = n > 1 ? i.payload : 0;
	c.bytes = (u64)f.len + (u64)headers * (n - 1) + (u64)outer * n;
	c.payload_bytes = i.payload_len;
	c.last_ns = bpf_ktime_get_coarse_ns();
	c.packets = n;
	c.verdict = i.verdict;
	c.tcp_flags = i.tcp_flags;
	if (!add_to_flow(&flows, &fk, &c))
		return T_FLOW_LOST;
	return T_COUNTED;
}

SEC("tc")
int rsc_tap(struct __sk_buff *skb)
{
	u32 outcome = look(skb);
	u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n)
		*n += 1; /* per CPU, and frames are received with bottom halves off */
	return TC_ACT_UNSPEC;
}
