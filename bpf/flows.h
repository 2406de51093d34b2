//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_FLOWS_H
#define RSC_FLOWS_H

#include "abi.h"
#include "parse.h"

/*
 * The TCP flows of one VM are a BPF_MAP_TYPE_LRU_HASH from struct flow_key to struct flow_stats. Each VM has a map of its own:
 * when it is full, the VM's least recently used flow gives way, and never another VM's, however many addresses a sender makes
 * up.
 *
 * Counters are shared and added to atomically: RSS keeps a flow on one CPU, so the cache line is rarely fought over, and a
 * per-CPU map would cost the row's size times the number of possible CPUs, and lets each CPU forget a flow on its own, so that
 * sums over the CPUs would be wrong. What XDP counts goes through slots.h first.
 */

/* What is to be added to a row. */
struct flow_counts {
	u64 bytes;
	u64 payload_bytes;
	u64 last_ns; /* bpf_ktime_get_coarse_ns, as all times of flows */
	u32 packets;
	u32 verdict;
	u32 tcp_flags;
};

/* What a row is made of. In memory of its own: a row is large for a program's stack. */
const volatile struct flow_stats no_counts = {};

/*
 * Adds to a flow's row, which it makes when there is none: 2, otherwise 1. 0: the map had no room. Two CPUs may race to make it: the
 * loser's update fails with EEXIST and its second lookup finds the winner's row. Rows start at zero, so that everyone only adds.
 */
static __always_inline int add_to_flow(void *flows, const struct flow_key *k, const struct flow_counts *c)
{
	struct flow_stats *row = bpf_map_lookup_elem(flows, k);
	u32 v = c->verdict;
	int made = 1;

	if (!row) {
		if (!bpf_map_update_elem(flows, k, (const void *)&no_counts, BPF_NOEXIST))
			made = 2;
		row = bpf_map_lookup_elem(flows, k);
		if (!row)
			return 0;
	}
	if (!row->first_ns)
		__sync_val_compare_and_swap(&row->first_ns, 0, c->last_ns);
	__sync_fetch_and_add(&row->bytes, c->bytes);
	if (c->payload_bytes)
		__sync_fetch_and_add(&row->payload_bytes, c->payload_bytes);
	if (v < NUM_VERDICTS)
		__sync_fetch_and_add(&row->verdicts[v], c->packets);
	if ((row->tcp_flags & c->tcp_flags) != c->tcp_flags)
		__sync_fetch_and_or(&row->tcp_flags, c->tcp_flags);
	if (row->last_ns < c->last_ns)
		row->last_ns = c->last_ns; /* a racing CPU is at most a tick away */
	return made;
}

#endif
