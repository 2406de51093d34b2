package user

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Journal hears how far a session is with each message, so that whoever goes on with
// the connection after a crash knows what the front-end believes. A message stays in
// the socket until it has been dealt with and answered: whoever goes on before that
// finds it there. Its methods are called on the goroutine in Run, while the front-end
// waits; State may be called from them.
type Journal interface {
	// Begin: the message that is next in the socket is about to be dealt with.
	Begin(r Request)
	// Done: what it asks for is done; changed says whether State may have changed. The
	// message is still in the socket. reply says that an answer follows, on which the
	// front-end may rely: whoever stops between here and End asks Answered. Without one,
	// nothing has to be known of it any more: done once more, it changes nothing.
	Done(changed, reply bool)
	// End: the answer is sent, and the message is off the socket.
	End()
}

// changes says whether a request may change what Session.State tells.
func (r Request) changes() bool {
	switch r {
	case GetFeatures, GetProtocolFeatures, GetQueueNum, GetMaxMemSlots, GetStatus, SetOwner:
		return false
	}
	return true
}

// Answered settles the message whose session has come to Journal's Done, and perhaps no
// further: fd is the connection, request the message's name. It says false where nobody
// can tell whether the front-end has the answer. Otherwise it has, or will, and the
// message is off the socket.
func Answered(fd int, request string) (known bool, err error) {
	noPeekOffset(fd)
	now, err := lookAhead(fd, 0)
	switch {
	case err != nil:
		return false, peerError(err)
	case !now.whole || now.header.Request.String() != request:
		return true, nil // another one, which the front-end would not send without the answer, or none
	}
	unread, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ) // of a stream: memory of what the peer has not read, unix(7)
	switch {
	case err != nil:
		return false, fmt.Errorf("connection: %w", err)
	case unread == 0:
		return false, nil // not sent, or read already
	}
	return true, discard(fd, make([]byte, HeaderSize+int(now.header.Size)))
}
