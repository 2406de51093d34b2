package netdev

import "bytes"

// EventKind says what happened to a watched interface.
type EventKind uint8

// The kinds of events. One moment can bring several for an interface.
const (
	Gone            EventKind = iota // removed, or moved to another namespace; it is no longer watched
	Down                             // no longer administratively up
	Up                               // administratively up again
	CarrierOff                       // no longer running: carrier lost
	CarrierOn                        // running again
	MTUChanged                       //
	QueuesChanged                    // the number of RX queues in use
	XDPChanged                       // another program, another mode, or none; a BPF link announces nothing: found at the interval
	MasterChanged                    // put into or taken out of a bridge or bond
	Renamed                          // another name, the same index
	MACChanged                       // its own address
	OffloadsChanged                  // of frames that come in: VLAN tags taken out, merging by the NIC; of those that go: segmentation

	BackupChanged // the bond that it belongs to made it active, or a backup

	// News of the namespace and not of one interface: the event has no index and no facts. They tell that it is time to look.
	LinksChanged // an interface came, went or changed, watched or not
	RulesChanged // TC filters, queueing disciplines or nftables; legacy iptables and ebtables announce nothing
)

// Event is one change, with the facts before and after it; Now is nil for Gone, both for news of the namespace. Facts are shared and not to be written.
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
	add(was.RxVLAN != now.RxVLAN || was.LRO != now.LRO || was.GROHW != now.GROHW || was.TSO != now.TSO || was.USO != now.USO, OffloadsChanged)
	add(was.Backup != now.Backup, BackupChanged)
	return events
}
