package vhost

// Names of Counters.TxDropped.
const (
	TxBadHeader = "bad_header" // header against the features or shorter than one
	TxTooShort  = "too_short"  // less than an Ethernet header
	TxTooLong   = "too_long"   // more than MaxFrame
	TxDisabled  = "disabled"   // sent on a queue that the guest has disabled
)

// Counters of one queue or of a Port. They grow for the life of the Port.
type Counters struct {
	RxFrames, RxBytes uint64 // delivered to the guest
	RxBuffers         uint64 // descriptor chains they took
	RxNoBuffers       uint64 // Puts that found too few
	RxTooBig          uint64
	RxRefused         uint64 // header or frame refused
	TxFrames, TxBytes uint64 // handed to the callback and not left for later
	TxDropped         map[string]uint64
	Calls             uint64 // interrupts sent
	CallsLost         uint64 // could not be written
}
