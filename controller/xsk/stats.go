package xsk

// Stats are the kernel's counters of the socket since it was opened (XDP_STATISTICS). Frames that XDP redirected are in the RX
// ring or in one of RxDropped, RxRingFull and FillEmpty.
type Stats struct {
	RxDropped   uint64 // lost for another reason, such as longer than a chunk
	RxInvalid   uint64 // bad addresses in the fill ring: a fault of ours
	TxInvalid   uint64 // bad descriptors in the TX ring: a fault of ours
	RxRingFull  uint64 // lost: RX ring full
	FillEmpty   uint64 // lost: fill ring empty
	TxRingEmpty uint64 // wake-ups that found nothing to send
}

// Stats asks the kernel for the socket's counters. It may be called from any goroutine while the socket is open.
func (s *Socket) Stats() (Stats, error) {
	st, err := statistics(s.parts.Socket)
	if err != nil {
		return Stats{}, explain("xsk: statistics", err)
	}
	return Stats{
		RxDropped: st.Rx_dropped, RxInvalid: st.Rx_invalid_descs, TxInvalid: st.Tx_invalid_descs,
		RxRingFull: st.Rx_ring_full, FillEmpty: st.Rx_fill_ring_empty_descs, TxRingEmpty: st.Tx_ring_empty_descs,
	}, nil
}
