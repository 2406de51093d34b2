//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_SHARES_H
#define RSC_SHARES_H

#include "abi.h"

/*
 * Shares of the RX ring. The worker takes frames from the ring in the order they came, so a flood at one VM would fill it and
 * the neighbours' frames would die in front of it. XDP, the only one who sees them before, holds each VM to a share.
 *
 * The share follows what is free (Choudhury and Hahne, "Dynamic queue length thresholds", 1998): a VM may have as many frames
 * in the ring as SHARE_FACTOR times the room that is left. One VM alone gets two thirds of the ring; n that take all they can
 * get 2/(2n+1) each, and 1/(2n+1) stays free for one that comes. Nobody has to know how many are active, and what some leave
 * the others may use.
 *
 * How many frames are in the ring is known by tickets, one number per VM and one per queue, that travel in a frame's metadata.
 * XDP counts up as it admits; the worker says which ticket it took last. Frames of one queue stay in their order, so what was
 * admitted before that is taken or was lost on the way: a frame lost (no chunk, too long for one) is no frame in the ring for
 * longer than until the next one is taken. Each number has one writer, so nothing here is atomic. In generic mode two CPUs may
 * serve one queue and give out a number twice, which counts one frame too few until it is taken.
 *
 * When the last frames of a share were lost, none of them comes to be taken. So a VM above its share is let through once
 * every PROBE_NS, with a ticket that takes no room: what comes of it puts the count right.
 */

#define SHARE_FACTOR 2
#define PROBE_NS 10000000ull

/* What XDP writes and what the worker writes lie on cache lines of their own. */
struct rx_vm {
	u32 admitted; /* the next ticket; only the low 16 bits travel */
	u32 pad;
	u64 probed_ns; /* CLOCK_MONOTONIC */
	u64 refused;   /* frames dropped because the VM had its share */
	u8 line[40];
	u32 taken; /* 1 + the ticket that the worker took last */
	u8 line2[60];
};

/* The same for a queue, and what hang.h needs. The third part is written by XDP when a worker hangs, and so is cheap to read. */
struct rx_queue {
	u32 admitted;
	u32 seen;     /* the beat that XDP saw last */
	u32 since;    /* frames redirected since that beat */
	u32 since_tick; /* when the first of them came, in jiffies */
	u64 since_ns;   /* and in CLOCK_MONOTONIC */
	u64 refused;    /* frames dropped because their VM had its share */
	u8 line[32];
	u32 taken;
	u32 room;     /* frames that the ring has room for, at most 32767; 0: no shares */
	u32 beat;     /* moves with every burst of the worker, also with an empty one */
	u32 patience; /* half of the fill ring, in frames; 0: a worker is never taken for hung */
	u8 line2[48];
	u32 hangs;     /* how often the worker was taken for hung */
	u32 hang_beat; /* the beat that it had then, the last time */
	u32 behind;    /* the frames that waited for it then */
	u32 pad2;
	u64 hang_passed; /* frames that went by the kernel because of it, in all */
	u8 line3[40];
	struct rx_vm vms[MAX_PORTS];
};

/* A frame's way into the ring. */
struct ticket {
	struct rx_queue *queue; /* 0: no shares */
	struct rx_vm *vm;
	u16 of_queue;
	u16 of_vm;
	u8 refused;
	u8 probe;
};

/* Tickets that are out. A frame that was lost may have been the last one taken: then there are fewer than none. */
static __always_inline int out(u32 admitted, const u32 *taken)
{
	int n = (short)(admitted - *(volatile const u32 *)taken);

	return n > 0 ? n : 0;
}

/* Looks whether a frame of a VM may go into the ring. */
static __always_inline struct ticket draw(struct rx_queue *q, u32 place)
{
	struct ticket t = {};
	u64 now;
	int room;

	if (!q || !(room = (int)*(volatile u32 *)&q->room))
		return t;
	t.queue = q;
	t.vm = &q->vms[place & PORT_INDEX];
	t.of_queue = (u16)q->admitted;
	t.of_vm = (u16)t.vm->admitted;
	room -= out(q->admitted, &q->taken);
	if (out(t.vm->admitted, &t.vm->taken) < SHARE_FACTOR * room)
		return t;
	now = bpf_ktime_get_ns();
	if (now - t.vm->probed_ns < PROBE_NS) {
		t.refused = 1;
		return t;
	}
	t.vm->probed_ns = now;
	t.probe = 1;
	return t;
}

/* Counts a frame that is dropped for it. */
static __always_inline void refuse(const struct ticket *t)
{
	t->queue->refused++;
	t->vm->refused++;
}

/* Counts a frame that is on its way. */
static __always_inline void admit(const struct ticket *t)
{
	if (!t->queue || t->probe)
		return;
	t->queue->admitted++;
	t->vm->admitted++;
}

#endif
