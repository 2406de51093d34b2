//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_PARSE_H
#define RSC_PARSE_H

#include "abi.h"

/*
 * The twin of flowtable/packet.Parse: same checks, same order, the first that fails decides. A test runs both on the same
 * frames. Headers are read through peek, and the key is written in words of eight bytes, as it is read afterwards: what is put together of smaller
 * ones the processor cannot hand on before it is in its cache. With RSC_SKB defined it
 * reads a TC program's skb, otherwise an XDP program's frame.
 */

#define ETH_LEN 14
#define TAG_LEN 4
#define IPV4_LEN 20
#define IPV6_LEN 40
#define TCP_LEN 20
#define UDP_LEN 8
#define MIN_FRAME 60 /* without FCS: up to here, bytes behind the IP packet are Ethernet padding */

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8

#define PROTO_HOPOPTS 0
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_DSTOPTS 60
#define MAX_EXT_HEADERS 8

#define IP_RESERVED 0x8000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* More than all headers together: 14 + 4 + 40 + 8 * 2048 + 60. The verifier wants a bound on a variable offset. */
#define MAX_OFFSET 0x7fff

#ifdef RSC_SKB
struct frame {
	struct __sk_buff *skb;
	u8 *buf; /* IPV6_LEN bytes, 4 behind what is aligned as a u64: what peek read last */
	u32 len; /* of the frame, however much of it lies in the skb's first piece */
};
#else
struct frame {
	const u8 *data;
	const u8 *end;
	u32 len;
};
#endif

struct info {
	u32 l3;
	u32 l4;
	u32 ip_end; /* one past the last byte of the IP packet */
	u32 payload;
	u32 payload_len;
	u16 ethertype; /* of what follows the tag */
	u16 tci;
	u8 tagged;
	u8 family;
	u8 keyed;
	u8 tcp_flags;
	u8 verdict;
};

/* len bytes at off, or 0. len is a constant everywhere, at most IPV6_LEN. They hold until the next peek. */
static __always_inline const u8 *peek(const struct frame *f, u32 off, u32 len)
{
#ifdef RSC_SKB
	/* An skb's headers may lie in several pieces. Copying leaves it as it is; pulling them together would not. */
	if (off > MAX_OFFSET || bpf_skb_load_bytes(f->skb, off, f->buf, len))
		return 0;
	return f->buf;
#else
	const u8 *p;

	if (off > MAX_OFFSET)
		return 0;
	p = f->data + off;
	if (p + len > f->end)
		return 0;
	return p;
#endif
}

static __always_inline u16 be16(const u8 *p)
{
	return bpf_ntohs(*(const half *)p);
}

/* Reads Ethernet and one tag. False: the verdict is final. */
static __always_inline int take_ether(const struct frame *f, struct info *i)
{
	const u8 *p = peek(f, 0, ETH_LEN);

	i->verdict = V_TRUNCATED;
	if (!p)
		return 0;
	i->l3 = ETH_LEN;
	i->ethertype = be16(p + 12);
	if (i->ethertype == ETH_P_8021Q) {
		p = peek(f, ETH_LEN, TAG_LEN);
		if (!p)
			return 0;
		i->tagged = 1;
		i->tci = be16(p);
		i->ethertype = be16(p + 2);
		i->l3 = ETH_LEN + TAG_LEN;
	}
	if (i->ethertype == ETH_P_8021Q || i->ethertype == ETH_P_8021AD) {
		i->verdict = V_VLAN_STACK;
		return 0;
	}
	i->verdict = V_OK;
	return 1;
}

/* Reads TCP at i->l4, all of it inside the IP packet. */
static __always_inline enum verdict take_tcp(const struct frame *f, struct info *i, struct flow_key *k)
{
	u32 have = i->ip_end - i->l4;
	const u8 *p;
	u32 hlen, ports;

	if (have < 4 || !(p = peek(f, i->l4, 4)))
		return V_MALFORMED;
	ports = __builtin_bswap32(*(const quad *)p);
	((word *)k)[0] |= ports >> 16 | ports << 16; /* in host order, the source first */
	i->keyed = 1;
	if (have < TCP_LEN || !(p = peek(f, i->l4, TCP_LEN)))
		return V_MALFORMED;
	hlen = (p[12] >> 4) * 4;
	if (hlen < TCP_LEN || hlen > have)
		return V_MALFORMED;
	i->tcp_flags = p[13];
	i->payload = i->l4 + hlen;
	i->payload_len = have - hlen;
	return V_OK;
}

static __always_inline enum verdict take_ipv4(const struct frame *f, struct info *i, struct flow_key *k)
{
	const u8 *p = peek(f, i->l3, IPV4_LEN);
	word *w = (word *)k;
	enum verdict v = V_OK, tcp;
	u32 hlen, total, frag;

	i->family = 4;
	if (!p)
		return V_TRUNCATED;
	hlen = (p[0] & 15) * 4;
	if (p[0] >> 4 != 4 || hlen < IPV4_LEN)
		return V_MALFORMED;
	total = be16(p + 2);
	if (total < hlen || total > f->len - i->l3)
		return V_MALFORMED;
	i->ip_end = i->l3 + total;
	if (p[9] != PROTO_TCP)
		return V_NOT_TCP;
	w[0] = (u64)*(const quad *)(p + 12) << 32;
	w[2] = (u64)*(const quad *)(p + 16) << 32;
	w[4] = 4ull << 32;
	frag = be16(p + 6);
	if (frag & IP_OFFSET)
		return V_FRAGMENT;
	i->l4 = i->l3 + hlen;
	if (frag & IP_MF)
		v = V_FRAGMENT;
	else if (hlen > IPV4_LEN)
		v = V_IP_OPTIONS;
	else if (frag & IP_RESERVED)
		v = V_RESERVED_FLAG;
	tcp = take_tcp(f, i, k);
	return v != V_OK ? v : tcp;
}

static __always_inline int is_ext(u8 next)
{
	return next == PROTO_HOPOPTS || next == PROTO_ROUTING || next == PROTO_DSTOPTS || next == PROTO_FRAGMENT;
}

/* Walks the extension headers from next to TCP. Sets i->l4 when TCP is there. Of more than MAX_EXT_HEADERS nobody knows whether
 * TCP is behind them: they count as extension headers in front of TCP. */
static __always_inline enum verdict walk_ext(const struct frame *f, struct info *i, u8 next)
{
	enum verdict v = V_EXT_HEADER;
	u32 off = i->l3 + IPV6_LEN;
	const u8 *p;
	u32 frag;
	int n;

	for (n = 0; n < MAX_EXT_HEADERS; n++) {
		if (!is_ext(next))
			break;
		p = peek(f, off, 8);
		if (!p || off + 8 > i->ip_end)
			return V_NOT_TCP;
		if (next == PROTO_FRAGMENT) {
			frag = be16(p + 2);
			if (frag & 0xfff8)
				return V_FRAGMENT;
			if (frag & 1)
				v = V_FRAGMENT;
			off += 8;
		} else {
			off += (p[1] + 1) * 8;
		}
		next = p[0];
	}
	if (is_ext(next))
		return v;
	if (next != PROTO_TCP || off > i->ip_end)
		return V_NOT_TCP;
	i->l4 = off;
	return v;
}

static __always_inline enum verdict take_ipv6(const struct frame *f, struct info *i, struct flow_key *k)
{
	const u8 *p = peek(f, i->l3, IPV6_LEN);
	word *w = (word *)k;
	enum verdict v = V_OK, tcp;
	u32 total;

	i->family = 6;
	if (!p)
		return V_TRUNCATED;
	if (p[0] >> 4 != 6)
		return V_MALFORMED;
	total = IPV6_LEN + be16(p + 4);
	if (total > f->len - i->l3)
		return V_MALFORMED;
	i->ip_end = i->l3 + total;
	w[0] = (u64)*(const quad *)(p + 8) << 32;
	w[1] = *(const word *)(p + 12);
	w[2] = *(const word *)(p + 20);
	w[3] = *(const word *)(p + 28);
	w[4] = *(const quad *)(p + 36) | 6ull << 32;
	if (p[6] == PROTO_TCP)
		i->l4 = i->l3 + IPV6_LEN;
	else
		v = walk_ext(f, i, p[6]);
	if (!i->l4)
		return v;
	tcp = take_tcp(f, i, k);
	return v != V_OK ? v : tcp;
}

/* Reads on after take_ether. k, which is all zeros before, is the flow only when i->keyed. */
static __always_inline void take_ip(const struct frame *f, struct info *i, struct flow_key *k)
{
	enum verdict v;

	if (i->ethertype == ETH_P_IP)
		v = take_ipv4(f, i, k);
	else if (i->ethertype == ETH_P_IPV6)
		v = take_ipv6(f, i, k);
	else
		v = V_NOT_IP;
	if (v == V_OK && f->len > i->ip_end && f->len > MIN_FRAME + i->tagged * TAG_LEN)
		v = V_TRAILER;
	i->verdict = (u8)v;
}

/*
 * Whether what take_ip has found to be no TCP is a datagram that flowtable may merge: ports are its ports then. A fragment, and one with
 * options or extension headers, is none.
 */
static __always_inline int is_datagram(const struct frame *f, const struct info *i, struct flow_key *ports)
{
	const u8 *p;
	u32 l4;

	if (i->verdict != V_NOT_TCP)
		return 0;
	if (i->family == 4) {
		p = peek(f, i->l3, IPV4_LEN);
		if (!p || p[9] != PROTO_UDP || (p[0] & 15) * 4 != IPV4_LEN || be16(p + 6) & (IP_MF | IP_OFFSET))
			return 0;
		l4 = i->l3 + IPV4_LEN;
	} else {
		p = peek(f, i->l3, IPV6_LEN);
		if (!p || p[6] != PROTO_UDP)
			return 0;
		l4 = i->l3 + IPV6_LEN;
	}
	p = peek(f, l4, UDP_LEN);
	if (!p || l4 + UDP_LEN > i->ip_end)
		return 0;
	ports->src_port = be16(p);
	ports->dst_port = be16(p + 2);
	return 1;
}

#ifdef RSC_SKB
/* The segments of a TCP frame that take_ip has read. gso_segs is 0 for what comes from a tap until the stack has looked at it. */
static __always_inline u32 segments(const struct __sk_buff *skb, const struct info *i)
{
	u32 size = skb->gso_size;

	if (!size || i->payload_len <= size)
		return 1;
	return (i->payload_len + size - 1) / size;
}
#endif

#endif
