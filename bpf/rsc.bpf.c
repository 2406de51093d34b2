//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */

/*
 * The XDP program of one interface: which VM is a frame for, count its flow, describe the frame for the controller and
 * send it to the AF_XDP socket of its RX queue. What is not for a VM goes to the kernel, and so does what it can bring to a VM while
 * the queue's worker hangs. What is for a VM that has its share of the RX ring, or finds none left by a worker that hangs, is
 * dropped, and nothing else.
 */

#include "abi.h"
#include "flows.h"
#include "hang.h"
#include "maps.h"
#include "parse.h"
#include "shares.h"
#include "slots.h"

char __license[] SEC("license") = "Dual BSD/GPL";

#define VLAN_ID 0x0fff

/*
 * Set by the loader for veth in native mode, from the kernel's BTF, otherwise 0: where the pointer to the skb lies behind
 * ctx (struct veth_xdp_buff), and where the tag lies in the skb (vlan_all: protocol in network order, TCI in host order).
 */
const volatile u32 veth_skb = 0;
const volatile u32 skb_vlan = 0;

/*
 * Set by the loader where frames are longer than what the driver keeps in one piece. Headers lie in the first one, so only the length is
 * asked for. Otherwise the verifier takes the call out: it costs nothing, and kernels without it load the program.
 */
const volatile u32 jumbo = 0;

/* A tag that was taken out of the frame before XDP. */
struct outer_tag {
	u16 proto; /* host order, 0: none */
	u16 tci;
};

static __always_inline void count(u32 outcome)
{
	u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n)
		*n += 1; /* per CPU, and XDP is not preempted by XDP */
}

static __always_inline void count_more(u32 outcome, u32 events)
{
	u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);

	if (n)
		*n += events;
}

static __always_inline int pass(u32 outcome)
{
	count(outcome);
	return XDP_PASS;
}

static __always_inline struct rx_queue *queue_of(u32 id)
{
	return bpf_map_lookup_elem(&shares, &id);
}

static __always_inline int is_backup(void)
{
	u32 zero = 0;
	const struct device *d = bpf_map_lookup_elem(&device, &zero);

	return d && *(volatile const u32 *)&d->backup;
}

static __always_inline int has_socket(u32 queue)
{
	return bpf_map_lookup_elem(&xsks, &queue) != 0;
}

/*
 * Ends a frame whose VM has its share of the ring. When the worker has gone, neither its tickets nor its beats come back: then nobody
 * has.
 */
static __always_inline int drop_share(u32 queue, const struct ticket *t)
{
	if (!has_socket(queue))
		return pass(O_PASS_NO_SOCKET);
	refuse(t);
	count(O_RX_SHARE);
	return XDP_DROP;
}

/* Ends a frame whose worker hangs. */
static __always_inline int around(struct rx_queue *q, u32 queue, u32 fails_open)
{
	if (!has_socket(queue))
		return pass(O_PASS_NO_SOCKET);
	note_hang(q, fails_open);
	if (fails_open)
		return pass(O_PASS_HANG);
	count(O_DROP_HANG);
	return XDP_DROP;
}

/* Only for its type to be in the object, where a test compares it with what Go reads: types of pointers alone are left out. */
const volatile struct frame_meta frame_meta_layout = {};

/* What is written in front of a frame beside what the parser found out. */
struct note {
	u32 port;
	u16 frame_len;
	u16 tci;
	u8 flags;
};

/* Describes the frame in front of it. False: the driver has no room there. It ends all pointers into the packet. */
static __always_inline int put_meta(struct xdp_md *ctx, const struct note *n, const struct info *i, const struct ticket *t)
{
	struct frame_meta *m;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*m)))
		return 0;
	m = (void *)(long)ctx->data_meta;
	if ((void *)(m + 1) > (void *)(long)ctx->data)
		return 0;
	m->magic = META_MAGIC;
	m->port = n->port;
	m->frame_len = n->frame_len;
	m->queue_ticket = t->of_queue;
	m->l3 = (u16)i->l3;
	m->l4 = (u16)i->l4;
	m->payload = (u16)i->payload;
	m->payload_len = (u16)i->payload_len;
	m->tci = n->tci;
	m->family = i->family;
	m->verdict = i->verdict;
	m->flags = n->flags;
	m->tcp_flags = i->tcp_flags;
	m->vm_ticket = t->of_vm;
	m->reserved = 0;
	return 1;
}

/* The VLAN a frame is in, or -1 when no port can be. */
static __always_inline int vlan_of(const struct info *i, struct outer_tag outer)
{
	int id;

	if (outer.proto && (outer.proto != ETH_P_8021Q || i->tagged || i->verdict == V_VLAN_STACK))
		return -1; /* a tag inside an accelerated one: a guest must not see the inner one as its own */
	if (i->verdict == V_VLAN_STACK && !i->tagged)
		return -1; /* a service tag */
	id = (outer.proto ? outer.tci : i->tci) & VLAN_ID;
	if (i->verdict == V_VLAN_STACK && id == 0)
		return -1; /* removing the priority tag would lay the inner tag bare */
	return id;
}

static __always_inline int is_excluded(u32 port, u16 number)
{
	struct excluded_key k = {};

	k.port = port;
	k.tcp_port = number;
	return bpf_map_lookup_elem(&excluded, &k) != 0;
}

/* Whether a frame of this VM goes to the socket. Asked of every frame, so a change of the port's row holds at once. */
static __always_inline int is_wanted(const struct port_value *port, const struct frame *f, const struct info *i, struct flow_key *k)
{
	u32 flags = port->flags;

	if (!(flags & PORT_STEER))
		return 0;
	if (!(flags & PORT_TCP_ONLY))
		return 1;
	if (i->keyed) {
		if (i->verdict == V_FRAGMENT) /* the rest of a fragmented packet would go the other way */
			return 0;
		if (flags & (i->family == 4 ? PORT_NO_V4 : PORT_NO_V6))
			return 0;
	} else if (!(flags & (i->family == 4 ? PORT_UDP4 : PORT_UDP6)) || !is_datagram(f, i, k)) {
		return 0;
	}
	return !(flags & PORT_EXCLUDES) || !(is_excluded(port->port, k->src_port) || is_excluded(port->port, k->dst_port));
}

static __noinline int steer(struct xdp_md *ctx, u16 outer_proto, u16 outer_tci)
{
	struct frame f = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, 0 };
	struct outer_tag outer = { outer_proto, outer_tci };
	struct info i = {};
	struct port_key pk = {};
	struct flow_key fk = {};
	struct note n = {};
	struct port_value *port;
	struct rx_queue *q;
	struct ticket t;
	u32 lost;
	int more, vlan, act, described;

	f.len = jumbo ? (u32)bpf_xdp_get_buff_len(ctx) : (u32)(f.end - f.data);
	more = take_ether(&f, &i);
	if (f.data + ETH_LEN > f.end)
		return pass(O_PASS_HOST);
	if (f.data[0] & 1)
		return pass(O_PASS_MULTICAST);
	vlan = vlan_of(&i, outer);
	if (vlan < 0)
		return pass(O_PASS_VLAN_FOREIGN);
	pk.vlan = (u16)vlan;
	*(quad *)pk.mac = *(const quad *)f.data;
	*(half *)(pk.mac + 4) = *(const half *)(f.data + 4);
	port = bpf_map_lookup_elem(&ports, &pk);
	if (!port)
		return pass(O_PASS_HOST);
	if (more)
		take_ip(&f, &i, &fk);
	if (i.keyed) {
		lost = count_in_slot(port->port, &fk, &i, f.len);
		if (lost)
			count_more(O_FLOW_LOST, lost);
	}
	if (!is_wanted(port, &f, &i, &fk))
		return pass(O_PASS_PORT);

	q = queue_of(ctx->rx_queue_index);
	if (hangs(q, port->flags & PORT_FAIL_OPEN))
		return around(q, ctx->rx_queue_index, port->flags & PORT_FAIL_OPEN);
	t = draw(q, port->port & PORT_INDEX);
	/*
	 * Not passed to the kernel, where some of these frames have a way to their VM too: they would overtake those of their flow
	 * that wait in the ring, and take from the host what the ring refuses.
	 */
	if (t.refused)
		return drop_share(ctx->rx_queue_index, &t);
	n.port = port->port;
	n.frame_len = (u16)f.len;
	n.tci = outer.proto ? outer.tci : i.tci;
	n.flags = (i.keyed ? META_KEYED : 0) | (i.tagged ? META_TAGGED : 0) | (outer.proto ? META_ACCELERATED : 0);
	described = put_meta(ctx, &n, &i, &t);
	if (!described) {
		if (outer.proto)
			return pass(O_PASS_VLAN_ACCELERATED); /* without metadata the controller would take it for untagged */
		count(O_NO_METADATA);
	}
	act = (int)bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	if (act != XDP_REDIRECT)
		return pass(O_PASS_NO_SOCKET);
	if (described)
		admit(&t);
	note_sent(q);
	count(O_REDIRECT);
	return act;
}

/*
 * Finds the tag of a frame that a veth peer handed over with the tag beside it. There the xdp_buff that ctx really is lies
 * in front of a pointer to the skb. The official way, bpf_xdp_metadata_rx_vlan_tag, wants a program bound to its device, and
 * those have crashed kernels when the device went away (see driver.go).
 */
static __always_inline struct outer_tag veth_tag(struct xdp_md *ctx)
{
	struct outer_tag tag = {};
	const u8 *skb = 0;

	if (bpf_probe_read_kernel(&skb, sizeof(skb), (const u8 *)ctx + veth_skb)) {
		count(O_VLAN_UNREADABLE);
		return tag;
	}
	if (!skb) /* an XDP frame: those carry no tag beside them */
		return tag;
	if (bpf_probe_read_kernel(&tag, sizeof(tag), skb + skb_vlan))
		count(O_VLAN_UNREADABLE);
	tag.proto = bpf_ntohs(tag.proto);
	return tag;
}

SEC("xdp")
int rsc_xdp(struct xdp_md *ctx)
{
	struct outer_tag tag = {};

	/*
	 * A switch that floods sends it by the active member as well: the VM gets that one, and its flow is counted once. Asked first of all,
	 * as everything behind is looked at twice by the verifier of Linux 6.1, once for each way to come there.
	 */
	if (is_backup())
		return pass(O_PASS_BACKUP);
	if (veth_skb)
		tag = veth_tag(ctx);
	return steer(ctx, tag.proto, tag.tci);
}
