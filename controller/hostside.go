package controller

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/vhost/tap"
)

// ownEvery is how often it is looked for addresses of the host on top of an interface.
const ownEvery = 5 * time.Second

// hostSide makes the host a neighbour of an uplink's VMs: a device of ours between the two, programs that turn frames to it and from it, and
// sockets on it. It is there while some VM wants that.
type hostSide struct {
	way      *netdev.Way
	prog     *bpf.HostProgram
	in       *tap.HostReader
	stations *datapath.Stations
	looked   time.Time // when the host's own addresses were
	built    bool      // by AdoptHost, and not in its place yet
	anew     bool      // made by an unpack: who goes on when that fails does not have it
}

// openHostSide makes the way and puts the programs in their places. Nobody is a neighbour yet. On failure nothing is left behind.
func (u *uplink) openHostSide() (h *hostSide, err error) {
	h = &hostSide{stations: &datapath.Stations{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
			h = nil
		}
	}()
	if h.way, err = netdev.OpenWay(u.name, u.facts.Index); err != nil {
		return h, err
	}
	if h.in, err = tap.OpenHostReader(h.way.Index); err != nil {
		return h, err
	}
	if h.prog, err = bpf.LoadHost(u.hostOptions(h.way)); err != nil {
		return h, err
	}
	if err := h.prog.Attach(); err != nil {
		return h, err
	}
	behind, err := netdev.StationsBehind(u.facts.Index) // whose frames may not come by here for a while
	if err != nil {
		u.log.Warn("host: forwarding entries", "err", err)
	}
	for _, s := range behind {
		h.stations.Learn([]datapath.Addr{{VLAN: s.VLAN, MAC: s.MAC}}, u.clock())
	}
	return h, nil
}

func (u *uplink) hostOptions(w *netdev.Way) bpf.HostOptions {
	return bpf.HostOptions{Uplink: u.facts.Index, Way: w.Index, TakesUSO: w.TakesUSO}
}

// close takes the host's side off the interface. nil is no error.
func (h *hostSide) close() error {
	if h == nil {
		return nil
	}
	return errors.Join(h.prog.Close(), h.closeIn(), h.way.Close())
}

// release closes what this process has of it and leaves it in its place. nil is no error.
func (h *hostSide) release() error {
	if h == nil {
		return nil
	}
	return errors.Join(h.prog.Release(), h.closeIn(), h.way.Close())
}

func (h *hostSide) closeIn() error {
	if h.in == nil {
		return nil
	}
	return h.in.Close()
}

// syncHost makes the host the neighbour of the VMs that want it, or of nobody. What does not work is a warning in u.hostTrouble: the VMs are
// served all the same, without the host. Call it when VMs came, went, or have other addresses or another policy.
func (u *uplink) syncHost() {
	trouble := ""
	if err := u.tryHost(); err != nil {
		trouble = fmt.Sprintf("the host is no neighbour of the VMs of %s: %v", u.name, err)
	}
	if trouble != u.hostTrouble && trouble != "" {
		u.log.Warn("host", "err", trouble)
	}
	u.hostTrouble = trouble
}

func (u *uplink) tryHost() (err error) {
	vms := u.hostNeighbours()
	if len(vms) == 0 {
		return u.endHost()
	}
	if u.host == nil {
		if u.host, err = u.openHostSide(); err != nil {
			return err
		}
	}
	u.lookForOwn(netdev.AddressesOn)
	if err := u.giveHost(); err != nil { // before frames come
		return err
	}
	return u.host.prog.SetNeighbours(vms)
}

// hostNeighbours are the addresses of the VMs that have the host as their neighbour.
func (u *uplink) hostNeighbours() (out []bpf.PortKey) {
	for _, a := range u.vms {
		a.mu.Lock()
		wants := a.wantsHost()
		a.mu.Unlock()
		if !wants {
			continue
		}
		for _, addr := range a.addrs() {
			out = append(out, keyOf(addr))
		}
	}
	return out
}

// endHost takes the host's side off. Its sockets stay open if a worker does not answer, which may use them.
func (u *uplink) endHost() error {
	h := u.host
	if h == nil {
		return nil
	}
	u.host = nil
	err := h.prog.Close()
	bad := u.each(func(q *queue) error { return q.SetHost(datapath.Host{}) })
	if err = errors.Join(err, bad); errors.Is(bad, datapath.ErrStuck) {
		return err
	}
	for _, q := range u.queues {
		err = errors.Join(err, q.closeHost())
	}
	return errors.Join(err, h.closeIn(), h.way.Close())
}

// giveHost gives every worker its socket to the host, and the first one what the host sends. Call it also when queues came or went.
func (u *uplink) giveHost() (err error) {
	h := u.host
	if h == nil {
		return nil
	}
	for i, q := range u.queues {
		if q.host == nil {
			if q.host, err = tap.OpenUplink(h.way.Index); err == nil {
				err = q.host.SetMark(meta.HostMark)
			}
			if err != nil {
				return errors.Join(err, q.closeHost())
			}
		}
		if i == 0 {
			continue
		}
		if err := q.SetHost(datapath.Host{Out: q.host, Stations: h.stations}); err != nil {
			return err
		}
	}
	return u.queues[0].SetHost(datapath.Host{In: h.in, Out: u.queues[0].host, Stations: h.stations})
}

// closeHost closes the queue's socket to the host.
func (q *queue) closeHost() error {
	if q.host == nil {
		return nil
	}
	err := q.host.Close()
	q.host = nil
	return err
}

// lookForOwn brings the host's own addresses, which on tells, up to date, as often as is worth it.
func (u *uplink) lookForOwn(on func(ifindex int) ([]netdev.Own, error)) {
	h := u.host
	if h == nil || time.Since(h.looked) < ownEvery {
		return
	}
	h.looked = time.Now()
	all, err := on(u.facts.Index)
	if err != nil {
		u.log.Warn("host: addresses", "err", err)
		return
	}
	own := make([][macLen]byte, 0, len(all))
	for _, a := range all {
		own = append(own, a.MAC)
	}
	h.stations.SetOwn(own)
}

// followAddress follows the interface's own address, which is the host's.
func (u *uplink) followAddress(was net.HardwareAddr) {
	if bytes.Equal(was, u.facts.MAC) {
		return
	}
	u.log.Info("the interface has another address", "was", was, "now", u.facts.MAC)
	if err := u.each(func(q *queue) error { return q.SetOwn([macLen]byte(u.facts.MAC)) }); err != nil {
		u.log.Warn("the interface's address: follow", "err", err)
	}
	if u.host != nil {
		u.host.looked = time.Time{}
		u.lookForOwn(netdev.AddressesOn)
	}
}

// allWarnings are what is to be known of the uplink.
func (u *uplink) allWarnings() []string {
	if u.hostTrouble == "" {
		return u.warnings
	}
	return append(slices.Clone(u.warnings), u.hostTrouble)
}

// wantsHost reports whether an attachment has the host as its neighbour.
func (a *attachment) wantsHost() bool { return a.policy.Host && !a.kind.bridged() }

// hostChange says what attach does on the host for that, "" for nothing.
func hostChange(u *uplink, a *attachment, uplink *netdev.Facts) string {
	if !a.wantsHost() || u != nil && u.host != nil {
		return ""
	}
	return fmt.Sprintf("make device %s, and put TC programs on it and on %s, so that the VM and this host reach one another (not with --no-host)",
		netdev.WayName(uplink.Name, uplink.Index), uplink.Name)
}

// hostPrograms are the kernel's numbers of the programs between the host and VMs. The caller holds mu.
func (c *Controller) hostPrograms() (out []uint32) {
	for _, u := range c.uplinks {
		if u.host != nil {
			out = append(out, u.host.prog.IDs()...)
		}
	}
	return out
}

// checkHost looks whether the host's side still is what it was, and mends it. The caller holds the controller's lock.
func (u *uplink) checkHost(l *look) {
	h, err := l.handle()
	if err != nil {
		u.log.Warn("host: look", "err", err)
		return
	}
	if u.host != nil {
		err := u.host.way.Check(h)
		if err == nil && !u.host.prog.Hangs() {
			err = errors.New("a program was taken off")
		}
		if err != nil { // whoever did it: all of it is made anew
			l.doubt()
			u.log.Warn("host: made anew", "dev", u.host.way.Name, "err", err)
			if err := u.endHost(); err != nil {
				u.log.Warn("host", "err", err)
			}
			u.syncHost()
		}
	}
	if u.hostTrouble != "" {
		u.syncHost()
	}
	u.lookForOwn(h.AddressesOn)
}
