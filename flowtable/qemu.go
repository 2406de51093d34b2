package flowtable

// NamedCount is one counter of an alias view.
type NamedCount struct {
	Name  string
	Value uint64
}

// QEMU returns the counters under the 29 names of QEMU's VirtioNetRscStat, in its order, for tools that know those. Where
// ours mean something else it is because QEMU's count a defect or something that a hash table does not have:
//
//   - An event that ends a superframe counts the packets that left alone for it, and the superframe as one; QEMU counts the
//     event. So tcp_syn is at least the number of SYN packets.
//   - received has no frames of other types, and none with two tags; QEMU leaves out tagged ones altogether.
//   - empty_cache, no_match: always 0; cache and no_match_cache are both the superframes opened that left meanwhile.
//   - win_update is 0 in gro, where window updates leave alone (reason window_update has them); in rsc they are counted as absorbed.
//   - dup_ack are duplicate acknowledgements behind data, which QEMU swallows.
//   - ack_out_of_win are changes of the acknowledgement; data_out_of_win is part of data_out_of_order, so 0.
//   - ip_frag has fragments, not packets with DF clear, which we merge; ip_ecn has changes of the ECN field, for both
//     families, not packets whose field is not 0.
//   - tcp_option, dup_ack1, dup_ack2 are 0 in QEMU too; so are failures to deliver, which are the Output's to count.
//   - timer counts frames, not firings.
func (l *Ledger) QEMU() [29]NamedCount {
	d := &l.Decided
	by := func(reasons ...Reason) (n uint64) {
		for _, r := range reasons {
			n += d.Frames[r]
		}
		return n
	}
	var held uint64
	for _, n := range l.HoldHist {
		held += n
	}
	return [29]NamedCount{
		{"received", l.In - d.Frames[ReasonNotIP] - d.Frames[ReasonVLANStack]},
		{"coalesced", d.Packets - d.Superframes - d.Updates},
		{"over_size", by(ReasonMaxBytes)},
		{"cache", held},
		{"empty_cache", 0},
		{"no_match_cache", held},
		{"win_update", d.Updates},
		{"no_match", 0},
		{"tcp_syn", by(ReasonSYN)},
		{"tcp_ctrl_drain", by(ReasonFIN, ReasonURG, ReasonRST, ReasonCWR)},
		{"dup_ack", by(ReasonDupACK)},
		{"dup_ack1", 0},
		{"dup_ack2", 0},
		{"pure_ack", by(ReasonPureACK)},
		{"ack_out_of_win", by(ReasonACKChange)},
		{"data_out_of_win", 0},
		{"data_out_of_order", by(ReasonGap, ReasonRetransmit)},
		{"data_after_pure_ack", 0},
		{"bypass_not_tcp", by(ReasonNotTCP, ReasonExtHeader)},
		{"tcp_option", 0},
		{"tcp_all_opt", by(ReasonOptionsChange)},
		{"ip_frag", by(ReasonFragment)},
		{"ip_ecn", by(ReasonECNChange)},
		{"ip_hacked", by(ReasonMalformed, ReasonTruncated)},
		{"ip_option", by(ReasonIPOptions)},
		{"purge_failed", 0},
		{"drain_failed", 0},
		{"final_failed", 0},
		{"timer", by(ReasonDeadline)},
	}
}

// Virtio returns the counters of virtio's receive GSO statistics (virtio 1.4, struct virtio_net_stats_rx_gso) by their names:
// frames of more than one packet, and the packets in them as they came from the wire.
func (l *Ledger) Virtio() [3]NamedCount {
	return [3]NamedCount{
		{"rx_gso_packets", l.Decided.Superframes},
		{"rx_gso_packets_coalesced", l.Decided.Packets},
		{"rx_gso_bytes_coalesced", l.Decided.Bytes},
	}
}
