package vhost

import "sync/atomic"

// Names in Counters.TxDropped.
const (
	TxBadHeader = "bad_header" // header against the features or shorter than one
	TxTooShort  = "too_short"  // less than an Ethernet header
	TxTooLong   = "too_long"   // more than MaxFrame
	TxDisabled  = "disabled"   // sent on a queue that the guest has disabled
)

// Indexes of a queue's counters.
const (
	cRxFrames = iota
	cRxBytes
	cRxBuffers
	cRxNoBuffers
	cRxTooBig
	cRxRefused
	cRxOverBudget
	cTxFrames
	cTxBytes
	cTxBadHeader // the first of numDrops, in the order of dropNames
	cTxShort
	cTxLong
	cTxDisabled
	cCalls
	cCallsLost
	cSpared // counted by the queue
	numCounters

	numDrops = cTxDisabled + 1 - cTxBadHeader
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
	Spared            uint64 // calls and kicks of an eventfd that is costly to use, with which no data goroutine was held
	Faults            uint64 // connections ended by a mistake of ours; of a Port only
}

// Named returns the counters under the names that an operator sees, without TxDropped.
func (c *Counters) Named() map[string]uint64 {
	return map[string]uint64{
		"rx_frames": c.RxFrames, "rx_bytes": c.RxBytes, "rx_buffers": c.RxBuffers, "rx_no_buffers": c.RxNoBuffers,
		"rx_too_big": c.RxTooBig, "rx_over_budget": c.RxOverBudget, "rx_refused": c.RxRefused,
		"tx_frames": c.TxFrames, "tx_bytes": c.TxBytes, "calls": c.Calls, "calls_lost": c.CallsLost, "spared": c.Spared, "faults": c.Faults,
	}
}

// counts are a queue's own. now is guarded by the queue's lock; told is what
// everybody may read, and is brought up to date whenever the lock is given back.
// So counting costs no atomic operation a frame, and reading waits for nobody.
type counts struct {
	now  [numCounters]uint64
	told [numCounters]atomic.Uint64
}

// tell publishes now. The caller holds the queue's lock.
func (c *counts) tell() {
	for i, n := range c.now {
		if c.told[i].Load() != n { // a load is free, a store is not
			c.told[i].Store(n)
		}
	}
}

func (c *counts) addTo(sum *[numCounters]uint64) {
	for i := range sum {
		sum[i] += c.told[i].Load()
	}
}

func named(n *[numCounters]uint64) Counters {
	s := Counters{
		RxFrames: n[cRxFrames], RxBytes: n[cRxBytes], RxBuffers: n[cRxBuffers], RxNoBuffers: n[cRxNoBuffers],
		RxTooBig: n[cRxTooBig], RxOverBudget: n[cRxOverBudget], RxRefused: n[cRxRefused],
		TxFrames: n[cTxFrames], TxBytes: n[cTxBytes], TxDropped: make(map[string]uint64, numDrops),
		Calls: n[cCalls], CallsLost: n[cCallsLost], Spared: n[cSpared],
	}
	for i, name := range dropNames {
		s.TxDropped[name] = n[cTxBadHeader+i]
	}
	return s
}
