package vhost

import (
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Names of State.Name.
const (
	StateWaiting   = "waiting"   // no front-end
	StateConnected = "connected" // a front-end, no running ring
	StateRunning   = "running"   // at least one ring runs
	StateFailed    = "failed"    // no front-end, and the last one was thrown out
	StateClosed    = "closed"
)

// State is a snapshot of a Port for people.
type State struct {
	Name        string
	Reason      string // why the last connection ended, "" if it did not or in order
	Err         error  // the same
	Features    virtio.Features
	Protocol    user.ProtocolFeatures
	Pairs       int  // running
	QueueSize   int  // descriptors of receive queue 0, 0 before it ran
	MTU         int  // told by the front-end, 0 if not
	Regions     int  // of guest memory
	MemorySafe  bool // the front-end cannot cut the memory short (sealed)
	PeerPID     int
	Connections uint64 // front-ends so far
}
