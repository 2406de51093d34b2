//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */

/*
 * The TC program of `observe`: it counts what interfaces are given, a VM's tap at its egress, an uplink at its ingress. One program
 * serves all of them. It neither changes a frame nor decides about it.
 */

#define RSC_SKB
#include "abi.h"
#include "parse.h"

char __license[] SEC("license") = "Dual BSD/GPL";

/*
 * A frame is bulk when the kernel has merged it already, or when it carries what only a sender with more to send puts into
 * one segment: on every usual MTU (IPv6 demands 1280) that is above 1,000 bytes. A lone smaller frame is a request, an answer or
 * the end of one, which nothing could have merged.
 */
#define BULK_SEGMENT 1000

/* A train that rscctl would merge: it holds frames for 50 us at most, and a frame of at most 65,535 bytes. */
#define HOLD_NS 50000
#define MAX_TRAIN_BYTES 65000

#define F_FIN 0x01
#define F_SYN 0x02
#define F_RST 0x04
#define F_PSH 0x08
#define F_URG 0x20
#define ENDS_TRAIN (F_FIN | F_SYN | F_RST | F_PSH | F_URG)

/* By interface index. The rows are made by the loader: no row, no count. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct observed);
} counts SEC(".maps");

/* The train that a flow is in the middle of. */
struct train {
	struct flow_key key;
	u32 ifindex;
	u32 next_seq;
	u64 first_ns;
	u32 bytes;        /* of payload, 0: it has ended */
	u32 segment_size; /* of payload; a shorter one is the last */
};

/*
 * Where flows leave their train, one place each: two flows that meet there end each other's trains. That, and two CPUs that write one
 * place at the same time, makes the trains look shorter than they are, and `observe` promise less.
 */
#define NUM_TRAINS 16384
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NUM_TRAINS);
	__type(key, u32);
	__type(value, struct train);
} trains SEC(".maps");

static __always_inline u32 place_of(const struct flow_key *k, u32 ifindex)
{
	const u32 *w = (const u32 *)k;
	u32 h = ifindex;
	u32 n;

	for (n = 0; n < sizeof(*k) / 4; n++)
		h = (h ^ w[n]) * 0x9e3779b1u;
	return (h >> 15) & (NUM_TRAINS - 1);
}

static __always_inline int same_flow(const struct train *t, const struct flow_key *k, u32 ifindex)
{
	const u32 *a = (const u32 *)&t->key, *b = (const u32 *)k;
	u32 n, differs = t->ifindex ^ ifindex;

	for (n = 0; n < sizeof(*k) / 4; n++)
		differs |= a[n] ^ b[n];
	return !differs;
}

/* True when a frame goes on with its flow's train; otherwise it begins one. It is a guess at what could have been merged. */
static __always_inline int goes_on(const struct flow_key *k, const struct info *i, u32 ifindex, u32 seq, u32 size)
{
	u32 place = place_of(k, ifindex);
	struct train *t = bpf_map_lookup_elem(&trains, &place);
	u64 now = bpf_ktime_get_ns();
	int on;

	if (!t)
		return 0;
	on = t->bytes && same_flow(t, k, ifindex) && t->next_seq == seq && now - t->first_ns <= HOLD_NS &&
	     t->bytes + i->payload_len <= MAX_TRAIN_BYTES && size <= t->segment_size;
	if (!on) {
		t->key = *k;
		t->ifindex = ifindex;
		t->first_ns = now;
		t->bytes = 0;
		t->segment_size = size;
	}
	t->next_seq = seq + i->payload_len;
	t->bytes += i->payload_len;
	if (i->tcp_flags & ENDS_TRAIN || i->payload_len % t->segment_size)
		t->bytes = 0;
	return on;
}

static __always_inline u32 bin_of(u32 segs)
{
	if (segs < 2)
		return B_1;
	if (segs < 10)
		return B_2_9;
	if (segs < 22)
		return B_10_21;
	if (segs < 45)
		return B_22_44;
	return B_45_UP;
}

static __always_inline void count_data(struct __sk_buff *skb, const struct frame *f, const struct info *i, const struct flow_key *k, struct observed_tcp *c)
{
	u32 segs = segments(skb, i), bin = bin_of(segs);
	u32 size = segs > 1 ? skb->gso_size : i->payload_len;
	const u8 *p;

	c->data_frames++;
	c->payload_bytes += i->payload_len;
	c->segments += segs;
	if (segs < 2 && i->payload_len < BULK_SEGMENT)
		return;
	c->bulk_frames[bin]++;
	c->bulk_segments[bin] += segs;
	c->bulk_bytes[bin] += i->payload_len;
	p = peek(f, i->l4 + 4, 4);
	if (p && size && !goes_on(k, i, skb->ifindex, (u32)be16(p) << 16 | be16(p + 2), size))
		c->bulk_trains++;
}

SEC("tc")
int rsc_observe(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct observed *o = bpf_map_lookup_elem(&counts, &ifindex);
	word buf[1 + IPV6_LEN / 8] = {};
	struct frame f = { skb, (u8 *)buf + 4, skb->len };
	struct info i = {};
	struct flow_key fk = {};
	struct observed_tcp *c;

	if (!o)
		return TC_ACT_UNSPEC;
	/* Per CPU, and at both hooks bottom halves are off: plain additions do. */
	if (take_ether(&f, &i))
		take_ip(&f, &i, &fk);
	if (!i.keyed) {
		o->other_frames++;
		o->other_bytes += f.len;
		return TC_ACT_UNSPEC;
	}
	c = i.family == 4 ? &o->tcp[0] : &o->tcp[1];
	c->frames++;
	c->bytes += f.len;
	if (i.payload_len)
		count_data(skb, &f, &i, &fk, c);
	return TC_ACT_UNSPEC;
}
