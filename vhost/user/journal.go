package user

// Journal hears how far a session is with each message, so that whoever goes on with
// the connection after a crash knows what the front-end believes. A message stays in
// the socket until it has been dealt with: whoever goes on before that finds it there,
// and calls Session.Again. Its methods are called on the goroutine in Run, while the front-end
// waits; State may be called from them.
type Journal interface {
	// Begin: the message that is next in the socket is about to be dealt with.
	Begin(r Request)
	// Done: what it asks for is done; changed says whether State may have changed. The
	// message is still in the socket. a is the answer that follows, on which the front-end
	// may rely: whoever goes on before End calls Session.Owe. Of a message without one
	// nothing has to be known any more: done once more, it changes nothing.
	Done(changed bool, a Answer)
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
