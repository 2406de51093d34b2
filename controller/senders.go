package controller

import (
	"cmp"
	"fmt"
	"time"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/report"
)

const (
	sendersEvery = 5 * time.Second // a look at a veth's peer goes through the host's named namespaces
	partialFor   = time.Minute     // so long after the last frame with a partial checksum its sender is taken for mended
)

// peerWarning says that what the other end of a veth sends will be dropped by the guests, "" when it will not or cannot be changed.
func peerWarning(p *netdev.Peer) string {
	if on, fixed, err := p.Offload(netdev.TxChecksum); err != nil || !on || fixed {
		return ""
	}
	return fmt.Sprintf("%s sends partial checksums, which the guest will drop and we never merge: %s", p.Name, remedyFor(p))
}

// askSenders says what is wrong with the frames to come: that they will have partial checksums. "" is nothing. It is looked for when somebody
// wants to know, and not each time. The caller holds mu.
func (u *uplink) askSenders() string {
	if time.Since(u.sendersSeen) < sendersEvery {
		return u.senders
	}
	u.sendersSeen, u.senders = time.Now(), ""
	for _, d := range u.devs {
		if d.facts.Kind != "veth" {
			continue
		}
		if p, err := netdev.VethPeer(d.facts.Name); err == nil && p.Reachable {
			u.senders = cmp.Or(u.senders, peerWarning(p))
		}
	}
	return u.senders
}

// partialPast tells whether no frame with a partial checksum has come to the VM of late. The caller holds the controller's mu.
func (a *attachment) partialPast(s *report.Uplink, vm *report.VM) bool {
	if n := s.PartialChecksums(vm); n != a.partialSeen {
		a.partialSeen, a.partialAt = n, time.Now()
	}
	return time.Since(a.partialAt) > partialFor
}
