//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_SLOTS_H
#define RSC_SLOTS_H

#include "abi.h"
#include "flows.h"
#include "maps.h"

/*
 * Counting in front of the flow maps. A look-up in an LRU map, its atomic additions and an exact clock are most of what a frame
 * costs, so each CPU has FLOW_SLOTS slots, one for each hash of a flow, and adds there without any of it. A slot has what came since its flow's
 * row was last brought up to date: a flow's counts are the sum of its row and of its slots on all CPUs, and who reads must read both
 * (flowslots.go).
 *
 * A slot is brought to its row when another flow takes it, and with the first frame after SLOT_NS: so a flow that is busy
 * is no old row that gives way in its VM's map, and a crash loses what it counted in the last second. A flow's first frame makes
 * its row, and where that has no room, or the VM no map, there is no slot.
 *
 * A slot is taken by the second frame in a row that is of others. Where two flows alternate, one is counted in the slot and
 * one in its row, and nobody is moved with every frame.
 *
 * Slots are of VMs by their whole id (port_value.port): what one has left is not its successor's, who has the place now.
 *
 * Who writes: the slot's CPU; XDP is not preempted by XDP. User space reads while seq is even and stays so, and takes the slots of a
 * VM that has left by putting 0 for their owner, in place of which XDP then finds nobody.
 */

#define SLOT_NS 1000000000ull
#define SLOT_MOST (1u << 30) /* frames, far from where the 32 bits end */

static __always_inline u64 mix(u64 a, u64 b)
{
	return (a ^ b >> 29) * 0x9e3779b97f4a7c15ull;
}

/* The slot of a flow among FLOW_SLOTS. */
static __always_inline u32 slot_of(const word *k)
{
	u64 h = mix(k[0] + k[2] * 0xd6e8feb86659fd93ull, k[1] + k[3] * 0xa0761d6478bd642full + k[4]);

	return (u32)(h >> (64 - FLOW_SLOTS_BITS));
}

static __always_inline int same_flow(const word *a, const word *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]));
}

static __always_inline void count_rows(u32 id)
{
	u32 place = id & PORT_INDEX;
	u64 *n = bpf_map_lookup_elem(&rows_made, &place);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Adds to the row of a VM's flow. False: the VM has no map, or that has no room. */
/*
 * Not static, so that the verifier looks at it alone, and once: Linux 6.1 would follow it anew from each of the many ways by which a frame was
 * parsed, and give up.
 */
__noinline int add_for(u32 id, const struct flow_key *k, const struct flow_counts *c)
{
	struct flow_key key;
	void *flows_of;
	int added;

	if (!k || !c)
		return 0;
	key = *k; /* where Linux 6.1 takes a map's key from */
	flows_of = bpf_map_lookup_elem(&flows, &id);
	if (!flows_of)
		return 0;
	added = add_to_flow(flows_of, &key, c);
	if (added == 2)
		count_rows(id);
	return added != 0;
}

/* Brings a slot of a VM to its row, and empties it. Frames that could not be counted. */
static __always_inline u32 empty(struct flow_slot *s, u32 owner)
{
	struct flow_counts c = {};
	u32 lost = 0;

	if (owner && s->packets) {
		c.bytes = s->bytes;
		c.payload_bytes = s->payload_bytes;
		c.last_ns = s->last_ns;
		c.packets = s->packets;
		c.verdict = V_OK;
		c.tcp_flags = s->tcp_flags;
		if (!add_for(owner - 1, &s->key, &c))
			lost = c.packets;
	}
	s->bytes = 0;
	s->payload_bytes = 0;
	s->packets = 0;
	s->tcp_flags = 0;
	return lost;
}

/* Counts a frame in its row, and sees to its slot. Frames that could not be counted. Not static, as add_for. */
__noinline int count_slowly(struct flow_slot *s, u32 id, const struct flow_key *k, const struct flow_counts *c)
{
	u32 lost;

	if (!s || !k || !c)
		return 1;
	if (!add_for(id, k, c))
		return 1;
	if (s->owner == id + 1 && same_flow((const word *)&s->key, (const word *)k)) {
		if (c->verdict != V_OK)
			return 0;
	} else if (s->owner && !s->missed) {
		s->missed = 1;
		return 0;
	}
	__sync_lock_test_and_set(&s->seq, s->seq + 1);
	lost = empty(s, __sync_lock_test_and_set(&s->owner, 0));
	s->key = *k;
	s->missed = 0;
	s->since_ns = c->last_ns;
	s->last_ns = c->last_ns;
	s->tick = (u32)bpf_jiffies64();
	__sync_lock_test_and_set(&s->owner, id + 1);
	__sync_lock_test_and_set(&s->seq, s->seq + 1);
	return lost;
}

/* Whether a slot of the flow may go on. The clock is read once for each tick. */
static __always_inline int goes_on(struct flow_slot *s)
{
	u32 tick = (u32)bpf_jiffies64();

	if (s->tick == tick)
		return s->packets < SLOT_MOST;
	s->tick = tick;
	s->last_ns = bpf_ktime_get_coarse_ns();
	return s->last_ns - s->since_ns < SLOT_NS && s->packets < SLOT_MOST;
}

/* Counts a frame of a VM that came now, len bytes in all. Frames that could not be counted, this one or others. */
static __always_inline u32 count_in_slot(u32 id, const struct flow_key *k, const struct info *i, u32 len)
{
	u32 n = bpf_get_smp_processor_id() << FLOW_SLOTS_BITS | slot_of((const word *)k);
	struct flow_slot *s = bpf_map_lookup_elem(&flow_slots, &n);
	struct flow_counts c;

	if (s && s->owner == id + 1 && i->verdict == V_OK && same_flow((const word *)&s->key, (const word *)k) && goes_on(s)) {
		s->bytes += len;
		s->payload_bytes += i->payload_len;
		s->packets++;
		s->tcp_flags |= i->tcp_flags;
		s->missed = 0;
		return 0;
	}
	c.bytes = len;
	c.payload_bytes = i->payload_len;
	c.last_ns = bpf_ktime_get_coarse_ns();
	c.packets = 1;
	c.verdict = i->verdict;
	c.tcp_flags = i->tcp_flags;
	if (!s)
		return !add_for(id, k, &c);
	return count_slowly(s, id, k, &c);
}

#endif
