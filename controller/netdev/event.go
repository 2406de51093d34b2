package netdev

import "bytes"

// EventKind says what happened to a watched interface.
type EventKind uint8

// The kinds of events. One moment can bring several for an interface.
const (
	Gone          EventKind = iota // removed, or moved to another namespace; it is no longer watched
	Down                           // no longer administratively up
	Up                             // administratively up again
	CarrierOff                     // no longer running: carrier lost
	CarrierOn                      // running again
	MTUChanged                     //
	QueuesChanged                  // the number of RX queues in use
	XDPChanged                     // another program, another mode, or none; a BPF link announces nothing: found at the interval
	MasterChanged                  // put into or taken out of a bridge or bond
	Renamed                        // another name, the same index
	MACChanged                     // its own address
)

// Event is one change, with the facts before and after it; Now is nil for Gone. Facts are shared and not to be written.
type Event struct {
	Kind     EventKind
	Index    int // ifindex
	Was, Now *Facts
}

// changes lists what differs between two looks at one interface.
func changes(was, now *Facts) []Event {
	var events []Event
	add := func(happened bool, k EventKind) {
		if happened {
			events = append(events, Event{Kind: k, Index: now.Index, Was: was, Now: now})
		}
	}
	add(was.Up && !now.Up, Down)
	add(!was.Up && now.Up, Up)
	add(was.Running && !now.Running, CarrierOff)
	add(!was.Running && now.Running, CarrierOn)
	add(was.MTU != now.MTU, MTUChanged)
	add(was.RxQueues != now.RxQueues, QueuesChanged)
	add(was.XDP != now.XDP, XDPChanged)
	add(was.Master != now.Master, MasterChanged)
	add(was.Name != now.Name, Renamed)
	add(!bytes.Equal(was.MAC, now.MAC), MACChanged)
	return events
}
