//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_ABI_H
#define RSC_ABI_H

/* What C and Go share. abi.go mirrors it, and a test compares the two through the object's BTF. */

#include "kernel.h"

/* Structural verdicts of a parse; numbers and names are those of flowtable/packet. */
enum verdict {
	V_OK,
	V_NOT_IP,
	V_NOT_TCP,
	V_VLAN_STACK,
	V_MALFORMED,
	V_TRUNCATED,
	V_TRAILER,
	V_FRAGMENT,
	V_IP_OPTIONS,
	V_EXT_HEADER,
	V_RESERVED_FLAG,
	NUM_VERDICTS,
};

/*
 * What became of a frame. Every frame counts under exactly one of those before NUM_OUTCOMES_OF_FRAMES, so their sum is
 * the number of frames seen; those after it count events beside that.
 */
enum outcome {
	O_PASS_HOST,             /* for nobody of ours */
	O_PASS_MULTICAST,        /* multicast or broadcast destination */
	O_PASS_PORT,             /* for a VM whose frames are not to be steered */
	O_PASS_NO_SOCKET,        /* for a VM, but the queue has no socket */
	O_PASS_VLAN_ACCELERATED, /* for a VM, tag outside the frame, and no way to hand it on */
	O_PASS_VLAN_FOREIGN,     /* service tag, or a tag hidden behind a priority tag */
	O_REDIRECT,              /* sent to the socket */
	O_RX_SHARE,              /* dropped: its VM has its share of the RX ring */
	O_PASS_HANG,             /* for a VM that the kernel reaches too, and the queue's worker hangs */
	O_DROP_HANG,             /* dropped: for another VM, and a worker that hangs has left no more of the fill ring */
	O_PASS_BACKUP,           /* by the backup of a bond, which drops all but what it needs itself */
	NUM_OUTCOMES_OF_FRAMES,
	O_NO_METADATA = NUM_OUTCOMES_OF_FRAMES, /* redirected without metadata */
	O_FLOW_LOST,                            /* a frame that the flow map had no room for */
	O_VLAN_UNREADABLE,                      /* it could not be read whether a tag was taken out */
	NUM_OUTCOMES,
};

/* What became of a frame that a VM sent through its tap. All of them go on their way. */
enum tap_outcome {
	T_COUNTED,     /* under its flow */
	T_NO_FLOW,     /* not TCP, or without readable ports */
	T_FOREIGN_MAC, /* the source address is not the VM's */
	T_FOREIGN_TAG, /* of another VLAN than the VM's port: the VM put a tag there itself */
	T_FLOW_LOST,   /* the flow map had no room */
	NUM_TAP_OUTCOMES,
};

/*
 * What became of frames between the host and its VMs. One that went by the interface alone is in none of these.
 */
enum host_outcome {
	H_TO_VM,       /* the host's, for a VM: handed to the controller instead of the wire */
	H_GROUP_TO_VM, /* the host's broadcast or multicast: handed to the controller as well */
	H_TO_HOST,     /* a VM's, arrived at the interface */
	H_LOST,        /* the host's group frames that could not be handed over */
	NUM_HOST_OUTCOMES,
};

/*
 * skb->mark of the frames that sockets of the controller send: those that leave by the interface are not turned back to it, those that come
 * in by it are not taken for the wire's. "RSC1".
 */
#define HOST_MARK 0x52534331u

/* skb->mark of what the host sends to a VM by the way's egress, where the kernel cuts it. "RSC2". */
#define HOST_CUT_MARK 0x52534332u

/* Rows of host.bpf.c's neighbours. */
#define MAX_HOST_ROWS 8192u

/* Sizes of frames, in TCP segments, that `observe` tells apart. */
enum segment_bin {
	B_1,
	B_2_9,
	B_10_21,
	B_22_44,
	B_45_UP,
	NUM_SEGMENT_BINS,
};

/* What one interface was given of one address family's TCP. Bulk is defined in observe.bpf.c. */
struct observed_tcp {
	u64 frames;
	u64 bytes;       /* of whole frames, from Ethernet on */
	u64 data_frames; /* with payload */
	u64 payload_bytes;
	u64 segments; /* in data frames */
	u64 bulk_trains;
	u64 bulk_frames[NUM_SEGMENT_BINS];
	u64 bulk_segments[NUM_SEGMENT_BINS];
	u64 bulk_bytes[NUM_SEGMENT_BINS]; /* of payload */
};

struct observed {
	struct observed_tcp tcp[2]; /* IPv4, IPv6 */
	u64 other_frames;           /* not TCP, or without readable ports */
	u64 other_bytes;
};

struct port_key {
	u16 vlan; /* VLAN id in host order, 0 untagged */
	u8 mac[6];
};

/* What is done with the frames of a VM. Without PORT_STEER they are counted and passed; the others narrow it. */
enum {
	PORT_STEER = 1,
	PORT_TCP_ONLY = 2, /* only unfragmented TCP with readable ports, and what the UDP bits add; the kernel's path keeps the rest */
	PORT_NO_V4 = 4,    /* with PORT_TCP_ONLY: no IPv4 */
	PORT_NO_V6 = 8,    /* with PORT_TCP_ONLY: no IPv6 */
	PORT_EXCLUDES = 16, /* with PORT_TCP_ONLY: not what the map `excluded` names */
	PORT_UDP4 = 64,     /* with PORT_TCP_ONLY: UDP over IPv4 too, unfragmented, without options, and not what PORT_EXCLUDES says */
	PORT_UDP6 = 128,    /* the same over IPv6, without extension headers */
	PORT_FAIL_OPEN = 32 /* the kernel has a way to the VM too: it has the frames while the worker hangs */
};

/*
 * port_value.port: the VM's place among the ports of the interface in its low bits, above them how many VMs had the place before.
 * A place is given out again, the whole number is not.
 */
#define MAX_PORTS 256u
#define PORT_INDEX (MAX_PORTS - 1)

struct port_value {
	u32 port;
	u32 flags;
};

/* What is true of the interface that the program is on. */
struct device {
	u32 backup; /* 1: it is the backup of a bond, which is to drop what comes in by it */
};

/* A port of TCP and UDP, of either end, whose flows are left on the kernel's path. */
struct excluded_key {
	u32 port;     /* port_value.port */
	u16 tcp_port; /* host order */
	u16 pad;
};

enum flow_dir { DIR_TO_GUEST, DIR_TO_WIRE };

/* One direction of one TCP connection of the VM whose map it is in. */
struct flow_key {
	u16 src_port; /* host order */
	u16 dst_port;
	u8 src_ip[16]; /* IPv4: the first 4 bytes */
	u8 dst_ip[16];
	u8 family; /* 4 or 6 */
	u8 dir;    /* enum flow_dir */
	u16 pad;
} __attribute__((aligned(8)));

/* One verdict per frame, so the frames of a flow are the sum of the verdicts. */
struct flow_stats {
	u64 bytes;
	u64 payload_bytes;
	u64 first_ns; /* CLOCK_MONOTONIC, of the tick before */
	u64 last_ns;
	u32 tcp_flags; /* ORed */
	u32 pad;
	u64 verdicts[NUM_VERDICTS];
};

/* What one CPU has counted of one flow since it was last brought to the flow's row: slots.h. All of it has the verdict V_OK. */
#define FLOW_SLOTS_BITS 10
#define FLOW_SLOTS (1u << FLOW_SLOTS_BITS) /* of each CPU */

struct flow_slot {
	u32 owner; /* 1 + port_value.port, 0: nobody's */
	u32 seq;   /* odd while it becomes another's or is emptied */
	struct flow_key key;
	u64 bytes;
	u64 payload_bytes;
	u64 last_ns;
	u64 since_ns; /* when it was empty */
	u32 packets;
	u32 tcp_flags;
	u32 tick;   /* the jiffies of last_ns */
	u32 missed; /* the last frame of this hash was another flow's */
	u8 line[32];
};

#define META_MAGIC 0x31435352u

enum { META_TAGGED = 1, META_KEYED = 2, META_ACCELERATED = 4 };

/* In front of a redirected frame. Offsets count from the frame's first byte. */
struct frame_meta {
	u32 magic;
	u32 port;
	u16 frame_len;
	u16 queue_ticket; /* see shares.h */
	u16 l3;
	u16 l4;
	u16 payload;
	u16 payload_len;
	u16 tci;
	u8 family;
	u8 verdict;
	u8 flags;
	u8 tcp_flags;
	u16 vm_ticket; /* see shares.h */
	u32 reserved;
};

_Static_assert(sizeof(struct frame_meta) == 32, "the metadata block is 32 bytes, a multiple of 4 as the kernel asks");

#endif
