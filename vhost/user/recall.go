package user

import (
	"slices"

	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// Driver is what a session has learnt of the guest's driver, for the next connection of
// the same front-end.
//
// QEMU before 8.0 forgets what a driver negotiates while nobody is connected: it connects
// again and says that it was nothing, or what it was before. A guest whose driver is
// reloaded, or which reboots, in that moment would be served by another header length,
// and hear and send rubbish from then on (QEMU's net/vhost-user.c: the features that
// chr_closed_bh saves).
type Driver struct {
	PeerPID  int         `json:"peer_pid"` // of the front-end
	Features uint64      `json:"features"` // virtio feature bits
	Rings    []RingShape `json:"rings,omitempty"`
}

// RingShape is how a driver lays a ring out. Offsets are in bytes from the descriptors.
type RingShape struct {
	Index int    `json:"index"`
	Num   int    `json:"num"` // descriptors
	Avail uint64 `json:"avail"`
	Used  uint64 `json:"used"`
}

// Driver is what a state tells of it.
func (st *SessionState) Driver() Driver {
	d := Driver{PeerPID: st.PeerPID, Features: st.Features}
	for _, r := range st.Rings {
		if a := r.Addr; a != nil {
			d.Rings = append(d.Rings, RingShape{Index: r.Index, Num: r.Num, Avail: a.Avail - a.Desc, Used: a.Used - a.Desc})
		}
	}
	return d
}

// Known says whether there is anything to recall.
func (d *Driver) Known() bool {
	return virtio.Features(d.Features).Has(virtio.FVersion1) && len(d.Rings) > 0
}

// recall looks, before ring i starts, whether the features can be the driver's: rings of
// the legacy interface lie as QEMU lays them out, and no others do. A front-end that says
// legacy of others has forgotten. Where the ring is as the driver before had it, its
// features are taken.
func (s *Session) recall(i int) {
	r := &s.rings[i]
	shape := RingShape{Index: i, Num: r.num, Avail: r.addr.Avail - r.addr.Desc, Used: r.addr.Used - r.addr.Desc}
	r.forgotten = s.negotiated && !s.features.Has(virtio.FVersion1) && !vring.IsLegacy(shape.Num, shape.Avail, shape.Used)
	if !r.forgotten || slices.ContainsFunc(s.rings, func(r ring) bool { return r.running }) {
		return
	}
	before := &s.cfg.Before
	f := virtio.Features(before.Features)
	pid := s.Info().PeerPID
	if !before.Known() || pid == 0 || before.PeerPID != pid || !slices.Contains(before.Rings, shape) || f&^s.cfg.Features != 0 || f.Check() != nil {
		return
	}
	s.cfg.Logf("the front-end has forgotten what its guest's driver negotiated, as QEMU before 8.0 does while nobody is connected: going on with what it was before")
	s.features, r.forgotten = f, false
}
