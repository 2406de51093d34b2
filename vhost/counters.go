package vhost

// Names in Counters.TxDropped.
const (
	TxBadHeader = "bad_header" // header against the features or shorter than one
	TxTooShort  = "too_short"  // less than an Ethernet header
	TxTooLong   = "too_long"   // more than MaxFrame
	TxDisabled  = "disabled"   // sent on a queue that the guest has disabled
)

// Indexes of counts.txDropped.
const (
	dropHeader = iota
	dropShort
	dropLong
	dropDisabled
	numDrops
)

var dropNames = [numDrops]string{TxBadHeader, TxTooShort, TxTooLong, TxDisabled}

// Counters of one queue or of a Port. They grow for the life of the Port.
type Counters struct {
	RxFrames, RxBytes uint64 // delivered to the guest, headers not counted
	RxBuffers         uint64 // descriptor chains they took
	RxNoBuffers       uint64 // Puts that found too few
	RxTooBig          uint64 // Puts of frames that no buffers would ever hold
	RxOverBudget      uint64 // of those: superframes that need more buffers than Config.MaxBuffers
	RxRefused         uint64 // Puts whose header or frame was refused
	TxFrames, TxBytes uint64 // handed to the callback and not left for later
	TxDropped         map[string]uint64
	Calls             uint64 // interrupts sent
	CallsLost         uint64 // that could not be written
}

// Named returns the counters under the names that an operator sees, without TxDropped.
func (c *Counters) Named() map[string]uint64 {
	return map[string]uint64{
		"rx_frames": c.RxFrames, "rx_bytes": c.RxBytes, "rx_buffers": c.RxBuffers, "rx_no_buffers": c.RxNoBuffers,
		"rx_too_big": c.RxTooBig, "rx_over_budget": c.RxOverBudget, "rx_refused": c.RxRefused,
		"tx_frames": c.TxFrames, "tx_bytes": c.TxBytes, "calls": c.Calls, "calls_lost": c.CallsLost,
	}
}

// counts are a queue's own, guarded by its lock.
type counts struct {
	rxFrames, rxBytes, rxBuffers    uint64
	rxNoBuffers, rxTooBig, rxRefuse uint64
	rxOverBudget                    uint64
	txFrames, txBytes               uint64
	txDropped                       [numDrops]uint64
	calls, callsLost                uint64
}

func (c *counts) snapshot() Counters {
	s := Counters{
		RxFrames: c.rxFrames, RxBytes: c.rxBytes, RxBuffers: c.rxBuffers,
		RxNoBuffers: c.rxNoBuffers, RxTooBig: c.rxTooBig, RxOverBudget: c.rxOverBudget, RxRefused: c.rxRefuse,
		TxFrames: c.txFrames, TxBytes: c.txBytes, TxDropped: make(map[string]uint64, numDrops),
		Calls: c.calls, CallsLost: c.callsLost,
	}
	for i, n := range c.txDropped {
		s.TxDropped[dropNames[i]] = n
	}
	return s
}

// add sums o into s.
func (s *Counters) add(o Counters) {
	s.RxFrames += o.RxFrames
	s.RxBytes += o.RxBytes
	s.RxBuffers += o.RxBuffers
	s.RxNoBuffers += o.RxNoBuffers
	s.RxTooBig += o.RxTooBig
	s.RxOverBudget += o.RxOverBudget
	s.RxRefused += o.RxRefused
	s.TxFrames += o.TxFrames
	s.TxBytes += o.TxBytes
	for k, n := range o.TxDropped {
		s.TxDropped[k] += n
	}
	s.Calls += o.Calls
	s.CallsLost += o.CallsLost
}
