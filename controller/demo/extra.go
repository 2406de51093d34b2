package demo

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Extra is what a program that measures beside the demo (test/bench) adds to its processes: another way from the wire to the guest, and
// operations of its own. The zero value adds nothing.
type Extra struct {
	// Host makes the host's part of another way, in the namespace of the uplink and instead of the controller.
	Host func(uplink string, arg json.RawMessage) error
	// HostPID is the process that Host has started, 0: none. Its processor time is the controller's. nil: Host starts none.
	HostPID func() int
	// NIC opens the guest's NIC at the end of that way, its link down.
	NIC func(NICConfig) (NIC, error)
	// Do is an operation of the sender's or the guest's process. Such are called in turn.
	Do func(op string, arg json.RawMessage) (any, error)
}

// NICConfig describes the guest's NIC at the end of another way than vhost-user.
type NICConfig struct {
	HostPID   int    // a process in the uplink's namespace
	Name      string // of the interface in the guest's namespace, which is the caller's
	MAC       net.HardwareAddr
	MTU       int
	BufferLen int  // bytes of a receive buffer
	NAPI      bool // let what is received pass the guest's GRO
}

// NIC is the guest's: what moves its frames, and what was seen of them.
type NIC interface {
	Start() error
	Features() virtio.Features
	Stats() stackguest.Stats
	Err() error // why it came to its end, nil before
	Close() error
}

// or answers a request of the streams, or else one of Extra's.
func (x Extra) or(e *endpoint, q *request) (*reply, error) {
	if x.Do == nil || e.knows(q.Op) {
		return e.do(q)
	}
	result, err := x.Do(q.Op, q.Arg)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(result)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.Op, err)
	}
	return &reply{Result: b}, nil
}
