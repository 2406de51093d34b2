//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_HANG_H
#define RSC_HANG_H

#include "abi.h"
#include "shares.h"

/*
 * A worker that hangs: it is stopped, or waits for something, or another has its processor, while its socket lives on. Frames sent
 * to it would wait, and then be lost. XDP notices that by itself, and leaves frames to the kernel where that has a way to the VM.
 *
 * The worker writes a beat behind every burst that it takes, so a frame that XDP redirects is taken in front of some later beat.
 * XDP keeps the beat that it saw last, when the first frame since then came, and how many there were. The worker hangs when the first
 * one has waited HANG_NS, or when as many wait as are half of the fill ring, until the beat moves. An empty ring is waited for by
 * nobody: the first frame after a pause sees that the beat has moved, or that none waits, and is itself the first one. So
 * nothing has to be done while nothing comes.
 *
 * A frame that was lost on its way (it was too long for a chunk) waits for ever if the worker sleeps. The controller looks once a
 * second, and wakes a worker that is taken for hung: one that does not hang then beats.
 *
 * HANG_NS is longer than a worker's longest turn, and short enough that TCP does not time out over what is lost.
 *
 * What no kernel can take goes on to the socket, until all but a sixteenth of the fill ring is used. With a driver that receives into
 * the fill ring's chunks (zero-copy) a dry one ends the receiving of the queue in front of XDP, for the host and all VMs; what
 * is passed or dropped here gives its chunk back.
 */

#define HANG_NS 5000000ll

/*
 * Whether a frame that is for the socket must do without the worker: to the kernel if the VM fails open, otherwise to nobody.
 */
static __always_inline int hangs(struct rx_queue *q, u32 fails_open)
{
	u32 beat, patience;

	if (!q || !(patience = *(volatile u32 *)&q->patience))
		return 0;
	beat = *(volatile u32 *)&q->beat;
	if (beat != q->seen) {
		q->seen = beat;
		q->since = 0;
	}
	if (!q->since)
		return 0;
	if (!fails_open)
		return q->since >= patience * 15 / 8;
	if (q->since >= patience)
		return 1;
	/* To read the clock costs more than all of this, so that waits for the tick behind the first frame's. */
	if (q->since_tick == (u32)bpf_jiffies64())
		return 0;
	/* Signed: in generic mode another CPU may have come first with a younger frame. */
	return (long long)(bpf_ktime_get_ns() - q->since_ns) >= HANG_NS;
}

/* Counts a frame that does without the worker, and the hang with its first one. The worker reads `behind` when `hangs` has moved. */
static __always_inline void note_hang(struct rx_queue *q, u32 fails_open)
{
	if (fails_open)
		q->hang_passed++;
	if (q->hangs && q->hang_beat == q->seen)
		return;
	q->hang_beat = q->seen;
	q->behind = q->since;
	__sync_lock_test_and_set(&q->hangs, q->hangs + 1);
}

/* Counts a frame that is on its way to the socket. */
static __always_inline void note_sent(struct rx_queue *q)
{
	if (!q || q->since++)
		return;
	q->since_ns = bpf_ktime_get_ns();
	q->since_tick = (u32)bpf_jiffies64();
}

#endif
