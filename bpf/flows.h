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
 * sums over the CPUs would be wrong.
 */

/*
 * Finds or makes the flow's row. Two CPUs may race to make it: the loser's update fails with EEXIST and its second
 * lookup finds the winner's row. Rows start at zero, so that everyone only adds.
 */
static __always_inline struct flow_stats *flow_row(void *flows, const struct flow_key *k, u64 now)
{
	struct flow_stats *row = bpf_map_lookup_elem(flows, k);
	struct flow_stats fresh = {};

	if (row)
		return row;
	fresh.first_ns = now;
	fresh.last_ns = now;
	bpf_map_update_elem(flows, k, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(flows, k);
}

/* Counts packets of a flow that were parsed as one and came now, len bytes in all. False: the map had no room. */
static __always_inline int count_flow(void *flows, const struct flow_key *k, const struct info *i, u32 packets, u64 len, u64 now)
{
	struct flow_stats *row = flow_row(flows, k, now);
	u32 v = i->verdict;

	if (!row)
		return 0;
	__sync_fetch_and_add(&row->bytes, len);
	if (i->payload_len)
		__sync_fetch_and_add(&row->payload_bytes, i->payload_len);
	if (v < NUM_VERDICTS)
		__sync_fetch_and_add(&row->verdicts[v], packets);
	if ((row->tcp_flags & i->tcp_flags) != i->tcp_flags)
		__sync_fetch_and_or(&row->tcp_flags, i->tcp_flags);
	row->last_ns = now; /* a racing CPU is at most nanoseconds away */
	return 1;
}

#endif
