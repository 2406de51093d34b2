package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rscctl/rscctl/controller/api"
)

// Labels.
var (
	ofVM       = []string{"iface", "vm"}
	ofVMReason = []string{"iface", "vm", "reason"}
	ofQueue    = []string{"iface", "queue"}
)

func desc(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("rscctl_"+name, help, labels, nil)
}

var (
	buildInfo   = desc("build_info", "1, labelled with the controller's version.", []string{"version"})
	vmRunning   = desc("vm_running", "1 while rscctl serves the VM, 0 while its port waits, has failed, or is left to the kernel's path.", ofVM)
	vmWaiting   = desc("vm_waiting", "1 for a VM that is not attached now and comes back by itself.", ofVM)
	stalled     = desc("vm_stalled_seconds_total", "That workers slept because of the VM's memory.", ofVM)
	heldPackets = desc("vm_held_packets", "Packets in open slots and in the queue in front of the guest.", ofVM)
	unexplained = desc("vm_unexplained_packets", "Packets received less those of every fate: other than 0 is a fault of rscctl.", ofVM)
	frameBytes  = desc("vm_frame_bytes", "Sizes of delivered TCP frames, Ethernet first.", ofVM)
	holdSeconds = desc("vm_hold_seconds", "How long the first segment of a frame waited for others.", ofVM)
	queueUp     = desc("queue_worker_running", "1 while the worker of the NIC queue answers, 0 when it is stuck or has failed.", ofQueue)
	queueChunks = desc("queue_chunks", "UMEM chunks of the NIC queue.", ofQueue)
	queueHeld   = desc("queue_held_chunks", "UMEM chunks that the flow table holds.", ofQueue)
	queueSlots  = desc("queue_open_slots", "Superframes under construction.", ofQueue)
	queueCPU    = desc("queue_worker_cpu_seconds_total", "Processor time of the worker of the NIC queue.", ofQueue)
	outcomes    = desc("xdp_frames_total", "Frames of all interfaces by what the XDP program did with them.", []string{"outcome"})
)

// series is a metric and where its values stand.
type series[From, Values any] struct {
	desc *prometheus.Desc
	of   func(*From) Values
}

var vmCounters = []series[api.VMStats, uint64]{
	{desc("vm_received_packets_total", "Packets that came for the VM.", ofVM), func(v *api.VMStats) uint64 { return v.RxPackets }},
	{desc("vm_received_bytes_total", "Bytes of these packets, Ethernet first.", ofVM), func(v *api.VMStats) uint64 { return v.RxBytes }},
	{desc("vm_merged_packets_total", "Packets that reached the guest inside superframes.", ofVM), func(v *api.VMStats) uint64 { return v.MergedPackets }},
	{desc("vm_superframes_total", "Frames of two and more segments that reached the guest.", ofVM), func(v *api.VMStats) uint64 { return v.Superframes }},
	{desc("vm_recut_superframes_total", "Superframes that the guest's buffers did not hold and that were cut again.", ofVM), func(v *api.VMStats) uint64 { return v.Recut }},
	{desc("vm_guest_frames_total", "Frames put into the guest's receive queue.", ofVM), func(v *api.VMStats) uint64 { return v.GuestFrames }},
	{desc("vm_guest_bytes_total", "Bytes of these frames.", ofVM), func(v *api.VMStats) uint64 { return v.GuestBytes }},
	{desc("vm_interrupts_total", "Calls to the guest.", ofVM), func(v *api.VMStats) uint64 { return v.Interrupts }},
	{desc("vm_local_frames_total", "Frames from another VM of the same interface.", ofVM), func(v *api.VMStats) uint64 { return v.LocalFrames }},
	{desc("vm_from_host_packets_total", "Packets from this host, or from behind its bridges.", ofVM), func(v *api.VMStats) uint64 { return v.FromHost }},
	{desc("vm_share_dropped_total", "Frames for the VM that XDP dropped in front of the queues: it had its share of the room.", ofVM), func(v *api.VMStats) uint64 { return v.RxShare }},
	{desc("vm_late_packets_total", "Packets taken while steering was off, or after a worker hung, which the kernel's path may have overtaken.", ofVM), func(v *api.VMStats) uint64 { return v.LatePackets }},
	{desc("vm_unsent_frames_total", "Frames posted to vhost-net and not sent when the feed was closed.", ofVM), func(v *api.VMStats) uint64 { return v.FeedUnsent }},
	{desc("vm_tap_dropped_frames_total", "Frames of either path that the VM's tap had no room for.", ofVM), func(v *api.VMStats) uint64 { return v.TapDropped }},
	{desc("vm_rests_total", "Times that the VM had to rest because its memory made workers sleep.", ofVM), func(v *api.VMStats) uint64 { return v.Rests }},
	{desc("vm_tx_paced_total", "Times that what the VM sends had to wait for its rate.", ofVM), func(v *api.VMStats) uint64 { return v.TxPaced }},
	{desc("vm_superframe_refusals_total", "Times that the guest was found to drop superframes, and got its packets one by one for a while.", ofVM), func(v *api.VMStats) uint64 { return v.Refusals }},
	{desc("vm_sent_frames_total", "Frames taken from the guest.", ofVM), func(v *api.VMStats) uint64 { return v.TxFrames }},
	{desc("vm_sent_bytes_total", "Bytes of these frames.", ofVM), func(v *api.VMStats) uint64 { return v.TxBytes }},
	{desc("vm_sent_wire_frames_total", "Packets that became of the guest's frames.", ofVM), func(v *api.VMStats) uint64 { return v.TxWireFrames }},
	{desc("vm_sent_whole_frames_total", "Of the frames taken from the guest: superframes that were handed over whole to a VM beside it.", ofVM), func(v *api.VMStats) uint64 { return v.TxWhole }},
	{desc("vm_sent_host_packets_total", "Packets that became of the guest's frames for this host, or for what is behind its bridges.", ofVM), func(v *api.VMStats) uint64 { return v.ToHost }},
	{desc("vm_sent_kernel_frames_total", "Of the frames taken from the guest: those that left whole, to be cut by the interface or the kernel.", ofVM), func(v *api.VMStats) uint64 { return v.TxKernel }},
}

// vmReasons have a series for each reason that has occurred. docs/counters.md explains the reasons.
var vmReasons = []series[api.VMStats, map[string]uint64]{
	{desc("vm_sealed_superframes_total", "Superframes by why they left the flow table.", ofVMReason), func(v *api.VMStats) map[string]uint64 { return v.Sealed }},
	{desc("vm_passed_packets_total", "Packets that reached the guest alone, by why.", ofVMReason), func(v *api.VMStats) map[string]uint64 { return v.Passed }},
	{desc("vm_dropped_packets_total", "Packets for the VM that were dropped, by why.", ofVMReason), func(v *api.VMStats) map[string]uint64 { return v.Dropped }},
	{desc("vm_sent_dropped_frames_total", "Frames of the VM that were refused, by why.", ofVMReason), func(v *api.VMStats) map[string]uint64 { return v.TxDropped }},
}

var queueCounters = []series[api.Queue, uint64]{
	{desc("queue_received_frames_total", "Frames taken from AF_XDP.", ofQueue), func(q *api.Queue) uint64 { return q.RxFrames }},
	{desc("queue_sent_frames_total", "Frames queued for the wire.", ofQueue), func(q *api.Queue) uint64 { return q.TxFrames }},
	{desc("queue_fill_empty_total", "Frames that AF_XDP dropped: no chunk was free.", ofQueue), func(q *api.Queue) uint64 { return q.RxFillEmpty }},
	{desc("queue_share_total", "Frames that XDP dropped: their VM had its share of the RX ring.", ofQueue), func(q *api.Queue) uint64 { return q.RxShare }},
	{desc("queue_ring_full_total", "Frames that AF_XDP dropped: the worker was too slow.", ofQueue), func(q *api.Queue) uint64 { return q.RxRingFull }},
	{desc("queue_too_long_total", "Frames that AF_XDP dropped: longer than a chunk.", ofQueue), func(q *api.Queue) uint64 { return q.RxTooLong }},
	{desc("queue_rx_invalid_total", "Bad addresses in the fill ring: a fault of rscctl.", ofQueue), func(q *api.Queue) uint64 { return q.RxInvalid }},
	{desc("queue_tx_invalid_total", "Bad descriptors in the TX ring: a fault of rscctl.", ofQueue), func(q *api.Queue) uint64 { return q.TxInvalid }},
	{desc("queue_no_buffer_total", "Frames that no chunk holds, and for which no buffer was free.", ofQueue), func(q *api.Queue) uint64 { return q.RxNoBuffer }},
	{desc("queue_broken_total", "Frames in several chunks that were too long, or not whole.", ofQueue), func(q *api.Queue) uint64 { return q.RxBroken }},
	{desc("queue_unknown_frames_total", "Frames for a VM that had gone meanwhile.", ofQueue), func(q *api.Queue) uint64 { return q.RxUnknown }},
	{desc("queue_nobody_frames_total", "Frames for no VM that somebody else's XDP program brought, and that were dropped.", ofQueue), func(q *api.Queue) uint64 { return q.RxNobody }},
	{desc("queue_sent_kernel_frames_total", "Frames of guests that left by the packet socket.", ofQueue), func(q *api.Queue) uint64 { return q.TxKernel }},
	{desc("queue_tx_given_up_total", "Egress frames given up: the TX ring or the packet socket had no room.", ofQueue), func(q *api.Queue) uint64 { return q.TxRingFull }},
	{desc("queue_hangs_total", "Times that the worker took nothing while frames waited, and VMs on taps were left to the kernel's path.", ofQueue), func(q *api.Queue) uint64 { return q.Hangs }},
	{desc("queue_hang_passed_frames_total", "Frames that went by the kernel's path for that.", ofQueue), func(q *api.Queue) uint64 { return q.HangPassed }},
	{desc("queue_group_lost_total", "Broadcast and multicast frames that came faster than the worker read them.", ofQueue), func(q *api.Queue) uint64 { return q.GroupLost }},
	{desc("queue_group_unusable_total", "Broadcast and multicast frames that could not be given to a VM.", ofQueue), func(q *api.Queue) uint64 { return q.GroupUnusable }},
	{desc("queue_host_lost_total", "Frames between this host and VMs that were lost.", ofQueue), func(q *api.Queue) uint64 { return q.HostLost }},
}
