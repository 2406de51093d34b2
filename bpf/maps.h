//go:build ignore
/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef RSC_MAPS_H
#define RSC_MAPS_H

#include "abi.h"
#include "flows.h"
#include "shares.h"

/* Sizes here are only defaults; the loader sets the real ones. */

/* The VMs of this interface. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, struct port_key);
	__type(value, struct port_value);
} ports SEC(".maps");

/* The flow map of each VM, by port_value.port. A VM that comes may be there before the one that had its place is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 2 * MAX_PORTS);
	__type(key, u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LRU_HASH);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(struct flow_key)); /* clang forgets types that only an inner map names */
		__uint(value_size, sizeof(struct flow_stats));
	});
} flows SEC(".maps");

/* What was counted and is in no flow map yet, FLOW_SLOTS for each CPU, one CPU's behind the other's. The controller maps them into its memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct flow_slot);
} flow_slots SEC(".maps");

/* Rows that were ever in the flow map of a VM in the direction to the guest, by its place. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, u32);
	__type(value, u64);
} rows_made SEC(".maps");

/* TCP ports left alone, read for VMs with PORT_EXCLUDES. Rarely filled, so rows are made when needed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct excluded_key);
	__type(value, u8);
} excluded SEC(".maps");

/* The interface itself; the only map beside those of the RX queues that the members of a bond do not share. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct device);
} device SEC(".maps");

/* Frames by outcome. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUM_OUTCOMES);
	__type(key, u32);
	__type(value, u64);
} outcomes SEC(".maps");

/* The accounts of the RX rings, by RX queue. The controller maps them into its memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct rx_queue);
} shares SEC(".maps");

/* One AF_XDP socket per RX queue. A closed socket leaves the map by itself, and its queue's frames are passed on. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u32);
} xsks SEC(".maps");

#endif
