package demo

import (
	"time"
)

// sender is the machine at the other end of the wire: nothing but Linux.
type sender struct {
	endpoint endpoint
	born     time.Time
	extra    Extra
}

func newSender(x Extra) *sender { return &sender{born: time.Now(), extra: x} }

func (s *sender) do(q *request) (*reply, error) {
	switch q.Op {
	case "network":
		return nil, s.network(q)
	case "snapshot":
		retransmits, congestion := s.endpoint.sending()
		return &reply{Snap: &snapshot{
			Clock: time.Since(s.born), CPU: cpuTime(), Received: s.endpoint.received.Load(), Retrans: retransmits, Congestion: congestion,
		}}, nil
	}
	return s.extra.or(&s.endpoint, q)
}

func (s *sender) network(q *request) error {
	if err := socketBuffers(); err != nil {
		return err
	}
	if q.NIC == "" {
		if err := makeWire(q.PeerPID); err != nil {
			return err
		}
	}
	address, bits := senderIP4, bits4
	if q.IPv6 {
		address, bits = senderIP6, bits6
	}
	if q.NIC != "" {
		return bringUp(q.NIC, address, bits, 0)
	}
	if err := bringUp(wireName, address, bits, 0); err != nil {
		return err
	}
	if err := mountSys(q.SysFolder); err != nil {
		return err
	}
	return receiveApart(q.SysFolder, wireName)
}

func (s *sender) close() error {
	s.endpoint.close()
	return nil
}
