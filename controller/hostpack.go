package controller

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/vhost/tap"
)

// packedHost is what makes the host a neighbour of an interface's VMs. An heir opens sockets to the host by itself; what the host has sent
// and nobody has read waits in Socket.
type packedHost struct {
	Index    int               `json:"ifindex"`  // of the device
	Way      string            `json:"way"`      // descriptors: what keeps the device,
	Socket   string            `json:"socket"`   // what the host sends,
	Programs map[string]string `json:"programs"` // programs by their names,
	Object   string            `json:"object"`   // (which tells versions of them apart)
	Links    map[string]string `json:"links"`    // their links, none where they hang by filters,
	Maps     map[string]string `json:"maps"`     // and maps
	Stations []packedStation   `json:"stations"` // that were seen behind the host
}

type packedStation struct {
	VLAN uint16       `json:"vlan,omitempty"`
	MAC  [macLen]byte `json:"mac"`
}

// describeHost describes an uplink's side of the host, all but the stations, nil where it has none.
func (u *uplink) describeHost(keep *keeper) (*packedHost, error) {
	h := u.host
	if h == nil {
		return nil, nil
	}
	parts, err := h.prog.Parts()
	if err != nil {
		return nil, err
	}
	h.anew = false // somebody else may have it from here on
	tag := fmt.Sprintf("%s.host%d", u.tag, h.way.Index)
	s := &packedHost{Index: h.way.Index, Object: parts.Object, Programs: map[string]string{}, Links: map[string]string{}, Maps: map[string]string{}}
	s.Way, s.Socket = keep.fd(tag+".way", h.way.FD()), keep.fd(tag+".in", h.in.FD())
	for _, all := range []struct {
		kind string
		fds  map[string]int
		to   map[string]string
	}{{"", parts.Programs, s.Programs}, {"link.", parts.Links, s.Links}, {"", parts.Maps, s.Maps}} {
		for _, name := range slices.Sorted(maps.Keys(all.fds)) {
			all.to[name] = keep.fd(fmt.Sprintf("%s.%s%s.%d", tag, all.kind, name, parts.IDs[all.kind+name]), all.fds[name])
		}
	}
	return s, nil
}

// fixed is the host's side without what changes while frames move.
func (s *packedHost) fixed() *packedHost {
	if s == nil {
		return nil
	}
	out := *s
	out.Stations = nil
	return &out
}

// buildHost builds an uplink's side of the host of a parcel. It does not take its place.
func (u *uplink) buildHost(p *parcel.Parcel, s *packedHost) (err error) {
	if s == nil { // none, or of a version that had none: it is made once the VMs are here
		return nil
	}
	h := &hostSide{stations: &datapath.Stations{}, built: true}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("host: %w", err), h.release())
		}
	}()
	fd, err := p.Take(s.Way, parcel.Other)
	if err != nil {
		return err
	}
	if h.way, err = netdev.AdoptWay(fd, s.Index); err != nil {
		return err
	}
	if fd, err = p.Take(s.Socket, parcel.PacketSocket); err != nil {
		return err
	}
	if h.in, err = tap.AdoptHostReader(fd, s.Index); err != nil {
		return err
	}
	parts := bpf.HostParts{Object: s.Object}
	if parts.Programs, err = takeAll(p, s.Programs, parcel.BPFProgram); err == nil {
		parts.Links, err = takeAll(p, s.Links, parcel.BPFLink)
	}
	if err == nil {
		parts.Maps, err = takeAll(p, s.Maps, parcel.BPFMap)
	}
	if err != nil {
		parts.Close()
		return err
	}
	if h.prog, err = bpf.AdoptHost(u.hostOptions(h.way), parts); err != nil {
		return err
	}
	u.host = h
	return nil
}

// takeAll takes descriptors of one kind by their names.
func takeAll(p *parcel.Parcel, names map[string]string, kind parcel.Kind) (out map[string]int, err error) {
	out = map[string]int{}
	for name, file := range names {
		if out[name], err = p.Take(file, kind); err != nil {
			delete(out, name)
			for _, fd := range out {
				_ = unix.Close(fd)
			}
			return nil, err
		}
	}
	return out, nil
}

// beginHost puts a built side of the host in the place of the process before.
func (u *uplink) beginHost(s *packedHost) {
	if u.host == nil || !u.host.built {
		return
	}
	u.host.built = false
	if u.withoutHost(u.host.prog.TakePlace()); u.host == nil {
		return
	}
	var seen []datapath.Addr
	for _, one := range s.Stations {
		seen = append(seen, datapath.Addr{VLAN: one.VLAN, MAC: one.MAC})
	}
	u.host.stations.Learn(seen, u.clock())
}

// withoutHost gives a side of the host up that cannot be gone on with; nil is no error. It is made anew once the VMs are here, and is no reason
// for them to be attached anew.
func (u *uplink) withoutHost(err error) {
	if err != nil {
		u.log.Warn("hand over: host", "err", err)
		if err := u.endHost(); err != nil {
			u.log.Warn("hand over: host", "err", err)
		}
	}
}

// forgetHost leaves the host's side to the process before this one, or takes off what that one does not have.
func (u *uplink) forgetHost() error {
	h := u.host
	u.host = nil
	if h != nil && h.anew {
		return h.close()
	}
	return h.release()
}
