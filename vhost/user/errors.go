package user

import (
	"errors"

	"github.com/rscctl/rscctl/vhost/guestmem"
)

// What a peer can do wrong. Every error of a session or a Conn wraps one of
// these, ErrDisconnected, or an error of guestmem or vring.
var (
	ErrDisconnected = errors.New("peer closed the connection")
	ErrTimeout      = errors.New("peer does not read or stopped in the middle of a message")
	ErrBadHeader    = errors.New("malformed message header")
	ErrTooLarge     = errors.New("message larger than any request")
	ErrBadPayload   = errors.New("payload of the wrong size")
	ErrTruncatedFDs = errors.New("more file descriptors than a message may carry")
	ErrBadFD        = errors.New("unusable file descriptor")
	ErrFDCount      = errors.New("wrong number of file descriptors")
	ErrUnknown      = errors.New("unknown request")
	ErrUnsupported  = errors.New("request belongs to a feature that was not offered")
	ErrFeatures     = errors.New("features that were not offered or contradict each other")
	ErrRingIndex    = errors.New("ring index out of range")
	ErrRingSize     = errors.New("ring size is not a power of two from 1 to 32768")
	ErrRingAddress  = errors.New("ring address outside guest memory or misaligned")
	ErrRingRunning  = errors.New("ring is running")
	ErrMemory       = errors.New("memory regions refused")
	ErrTooManySlots = errors.New("too many memory regions")
	ErrNoRegion     = errors.New("no such memory region")
	ErrMTU          = errors.New("MTU out of range")
	ErrRefusals     = errors.New("too many refused requests")
	ErrInterrupted  = errors.New("session ended from our side")
	ErrPaused       = errors.New("session is to be handed over")
	ErrParcel       = errors.New("unusable hand-over") // of RestoreSession and Files
	ErrMemoryFault  = guestmem.ErrFault
	ErrInternal     = errors.New("internal fault")

	// Of the front-end only.
	ErrReply      = errors.New("reply does not match the request")
	ErrRefused    = errors.New("back-end refused the request")
	ErrNoMemory   = errors.New("guest memory exhausted")
	ErrNotOffered = errors.New("back-end does not offer a needed feature")
)
