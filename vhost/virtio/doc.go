// Package virtio holds what a virtio network device and its driver agree on before any byte of a
// frame moves: the feature bits with their dependencies, and the header in front of every frame.
//
// It knows nothing of memory or rings. [CheckRx] is the judge of every header that we hand to a guest;
// it is written from the text of the standard, not from the code that fills headers in, so that the two
// can disagree. [CheckTx] judges what a guest hands to us.
//
// Numbers and rules are those of the Virtual I/O Device standard, versions 1.2 and 1.3, section 5.1
// (Network Device) and section 6 (Reserved Feature Bits). Everything here is a pure function; all of it
// may be used from any goroutine.
package virtio
