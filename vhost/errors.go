package vhost

import (
	"errors"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/unixsock"
	"github.com/rscctl/rscctl/vhost/user"
)

// Of NewPort and CheckSocket.
var (
	ErrConfig      = errors.New("bad port configuration")
	ErrPathTooLong = unixsock.ErrPathTooLong
	ErrSocketInUse = unixsock.ErrInUse
	ErrNotSocket   = unixsock.ErrNotSocket
	ErrNoFolder    = unixsock.ErrNoFolder
	ErrFolder      = unixsock.ErrFolder // others could take the socket's place
)

// ErrDisconnected is a reason of Hooks.Stopped: the front-end has closed its connection, as one that ends does.
var ErrDisconnected = user.ErrDisconnected

// Of RxQueue.Put. They are returned as they are, so comparing suffices.
var (
	// ErrNoBuffers: the guest has not posted enough; nothing was delivered.
	ErrNoBuffers = errors.New("guest has too few receive buffers")
	// ErrTooBig: the frame cannot fit what this guest posts, now or later: one
	// chain without MRG_RXBUF, else the whole ring or, for a superframe,
	// Config.MaxBuffers. Cut it.
	ErrTooBig = errors.New("frame larger than the guest's receive buffers allow")
	// ErrNotNegotiated: the header uses a feature the guest did not accept, or
	// lacks the counts of one that it did (RSC_EXT).
	ErrNotNegotiated = errors.New("header needs a feature that was not negotiated")
	// ErrBadFrame: the caller's frame is inconsistent: Len is not the sum of
	// Frags, shorter than Ethernet, or longer than any frame.
	ErrBadFrame = errors.New("malformed frame")
	// ErrDamaged: a fragment is not what Frame.Sums says. Nothing was delivered.
	ErrDamaged = errors.New("a checksum in the frame is wrong")
	// ErrSource: the memory that the frame is read from vanished meanwhile. It is not this guest's; nothing was delivered.
	ErrSource = errors.New("the frame's own memory vanished")
	// ErrNotRunning: the queue is stopped or disabled.
	ErrNotRunning = errors.New("queue is not running")
	// ErrPortFailed: the guest or its front-end broke the rules, or its memory
	// vanished; State says what happened.
	ErrPortFailed = errors.New("port failed")
)

// Reasons of a stopped port beside those of packages user, vring and guestmem.
var (
	ErrMemoryFault = guestmem.ErrFault
	ErrInternal    = user.ErrInternal // a mistake of ours, or of a hook
	ErrQueueStuck  = errors.New("data path holds a queue for too long")
	// ErrStuck: the port waits for something that does not answer. It goes on by
	// itself as soon as that does; meanwhile it keeps what may be in use.
	ErrStuck  = errors.New("port is stuck")
	ErrClosed = errors.New("port closed")
)

// Of Pack and Unpack.
var (
	// ErrBusy: the port could not stop between two messages in time. It goes on as before.
	ErrBusy = errors.New("port is busy")
	// ErrHalfDone is why a front-end has to connect again: State tells it until it has.
	ErrHalfDone = errors.New("the front-end has to connect again")
	// ErrParcel: a state or a file of it cannot be used.
	ErrParcel = user.ErrParcel
	// ErrNewer: a state of a newer version.
	ErrNewer = errors.New("state of a newer version: go on with the binary that wrote it, or stop and start")
)
