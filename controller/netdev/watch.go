package netdev

// EventKind says what happened to a watched interface.
type EventKind uint8

// The kinds of events. One change of an interface can cause several.
const (
	Gone       EventKind = iota // the interface was removed or moved to another namespace; nothing follows for it
	Down                        // no longer administratively up
	Up                          // administratively up again
	CarrierOff                  // no longer running (carrier lost)
	CarrierOn                   // running again
	MTUChanged
	QueuesChanged  // number of RX queues in use
	XDPChanged     // another program, another mode, or none
	MasterChanged  // put into or taken out of a bridge or bond
	Renamed        // the name changed; the index is the same
	MACChanged     // its own address changed
	PromiscChanged // count of promiscuous users
)

// Event is one change, seen by comparing the facts before and after. For Gone, Now is nil.
type Event struct {
	Kind     EventKind
	Index    int
	Was, Now *Facts
}
