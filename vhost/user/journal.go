package user

// Journal hears how far a session is with each message, so that whoever goes on with
// the connection after a crash knows whether a message was half done: then nobody
// can tell what the front-end believes, and it has to connect again. Its methods are
// called on the goroutine in Run, while the front-end waits; State may be called from
// them.
type Journal interface {
	// Begin: a message is about to be taken off the socket.
	Begin(r Request)
	// Done: what it asks for is done, and a reply follows on which the front-end may rely.
	// Only for a request that may change anything.
	Done()
	// End: it has been answered. changed says whether State may have changed.
	End(changed bool)
}

// changes says whether a request may change what Session.State tells.
func (r Request) changes() bool {
	switch r {
	case GetFeatures, GetProtocolFeatures, GetQueueNum, GetMaxMemSlots, GetStatus, SetOwner:
		return false
	}
	return true
}
