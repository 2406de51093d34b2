package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// FindGuest is Handle.FindGuest in the calling thread's namespace.
func FindGuest(g Guest) (p *Proof, err error) {
	err = With(func(h *Handle) error {
		p, err = h.FindGuest(g)
		return err
	})
	return p, err
}

// FindGuest looks at all taps of the namespace, and at who has them open, for the one that the VM is behind. It reads
// /proc, so it is for attaching and not for every second. Errors: ErrUnproved, ErrAmbiguous, ErrNotTap when Tap is none.
func (h *Handle) FindGuest(g Guest) (*Proof, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	all, err := h.allLinks()
	if err != nil {
		return nil, err
	}
	held := holders(procRoot)
	var taps []tapView
	for _, l := range all {
		if l.kind != "tun" || !l.tap {
			continue
		}
		t, err := h.viewOf(g, l, all)
		if errors.Is(err, ErrNoDevice) || errors.Is(err, ErrNotBridged) {
			continue // gone, or on the move: not one to send to now
		}
		if err != nil {
			return nil, err
		}
		t.held = held[l.name]
		taps = append(taps, t)
	}
	return g.choose(taps)
}

// ConfirmGuest looks at a proved tap again, by its index: a few system calls, unless the tap was closed and opened since.
// It returns the proof as it is now, with the name that the tap has now. The error is ErrNoDevice when the tap is gone,
// ErrUnproved when something now speaks against it, with ErrReopened when somebody else may be behind it by now; the proof
// returned with these is the old one.
func (h *Handle) ConfirmGuest(g Guest, p *Proof) (*Proof, error) {
	a, err := h.linkAttrs(p.Index)
	if err != nil {
		return p, err
	}
	l := parseLink(p.Index, unix.ARPHRD_ETHER, 0, a)
	all := linkSet{}
	if l.master != 0 {
		m, err := h.linkAttrs(l.master)
		if err != nil {
			return p, err
		}
		all[l.master] = parseLink(l.master, unix.ARPHRD_ETHER, 0, m)
	}
	now, err := h.viewOf(g, l, all)
	if err != nil {
		return p, err
	}
	if now.downs != p.Downs {
		// The bridge may keep what it learned from the life before: of a carrier that is back at once it hears nothing.
		if now.here {
			if now.here, err = h.forget(l, all[l.master], g.MAC); err != nil {
				return p, err
			}
		}
		now.held = holders(procRoot)[l.name]
	}
	return g.confirm(p, now)
}

// forget makes the bridge forget an address that it learned on a port; who sends with it is learned again by that frame. It
// returns whether an entry stays: one that somebody has set.
func (h *Handle) forget(port, bridge linkInfo, mac net.HardwareAddr) (stays bool, err error) {
	vid, err := h.pvid(port.index, bridge)
	if err != nil {
		return false, err
	}
	e, err := h.fdbEntry(port.index, vid, mac)
	if err != nil || e.port != port.index || !e.learned {
		return e.port == port.index, err
	}
	req := h.fdbRequest(unix.RTM_DELNEIGH, unix.NLM_F_ACK, port.index, vid, mac, 0, netlink.NTF_MASTER)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("interface: %s: forget %s: %w", port.name, mac, linkErrno(err))
	}
	return false, nil
}

func (g Guest) check() error {
	if len(g.MAC) != 6 {
		return fmt.Errorf("VM's address %s: %w", g.MAC, ErrUnproved)
	}
	return nil
}

// viewOf reads what there is to know of a tap, but for who has it open.
func (h *Handle) viewOf(g Guest, l linkInfo, all linkSet) (tapView, error) {
	t := tapView{name: l.name, index: l.index, mac: l.mac, downs: l.downs, carrier: l.carrier}
	m := all[l.master]
	if m.kind != "bridge" {
		return t, nil
	}
	t.bridge = m.name
	switch _, err := h.FindPorts(g.Uplink, g.VLAN, l.index); {
	case err == nil:
		t.connected = true
	case !errors.Is(err, ErrNotBridged):
		return t, err
	}
	vid, err := h.pvid(l.index, m)
	if err != nil {
		return t, err
	}
	e, err := h.fdbEntry(l.index, vid, g.MAC)
	if err != nil {
		return t, err
	}
	switch e.port {
	case 0:
	case l.index:
		t.here = true
	default:
		t.elsewhere = h.linkName(e.port)
	}
	learned, err := h.learnedOn(l.index, l.master, vid)
	if err != nil {
		return t, err
	}
	t.others = slices.DeleteFunc(learned, func(mac net.HardwareAddr) bool { return bytes.Equal(mac, g.MAC) })
	return t, nil
}

// linkName is the name that an index has now.
func (h *Handle) linkName(index int) string {
	if a, err := h.linkAttrs(index); err == nil {
		return a.text(unix.IFLA_IFNAME)
	}
	return fmt.Sprintf("of index %d", index)
}

// pvid is the VLAN that a bridge keeps a port's untagged frames in: 0 without VLAN filtering, or when they belong to none.
func (h *Handle) pvid(port int, bridge linkInfo) (uint16, error) {
	if !bridge.filtering {
		return 0, nil
	}
	vlans, err := h.nl.BridgeVlanList()
	if err != nil {
		return 0, fmt.Errorf("bridge %s: VLANs: %w", bridge.name, err)
	}
	for _, v := range vlans[int32(port)] {
		if v.PortVID() {
			return v.Vid, nil
		}
	}
	return 0, nil
}

// fdbEntry is the entry that the port's bridge has of an address, on whichever port; the zero value when there is none. An
// address of the port itself (a local entry) is none of a VM's.
func (h *Handle) fdbEntry(port int, vid uint16, mac net.HardwareAddr) (fdbEntry, error) {
	msgs, err := h.entryMessages(port, vid, mac)
	if err != nil {
		return fdbEntry{}, fmt.Errorf("interface: %s: forwarding entry %s: %w", h.linkName(port), mac, err)
	}
	for _, m := range msgs {
		if e, ok := parseFDB(m); ok && !(e.local && e.port == port) {
			return e, nil
		}
	}
	return fdbEntry{}, nil
}

// learnedOn lists the addresses that a bridge has learned from frames on a port, in a VLAN of the bridge.
func (h *Handle) learnedOn(port, bridge int, vid uint16) (out []net.HardwareAddr, err error) {
	// The older of the two requests that the kernel takes (net/core/rtnetlink.c valid_fdb_dump_legacy): struct ifinfomsg
	// with the port, and the bridge as IFLA_MASTER. The kernel answers with this port's entries only.
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	req.Sockets = h.raw
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(port)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) { // what was missed is there at the next look
		return nil, fmt.Errorf("interface: %s: forwarding entries: %w", h.linkName(port), linkErrno(err))
	}
	for _, m := range msgs {
		e, ok := parseFDB(m)
		if ok && e.learned && e.port == port && e.master == bridge && e.vid == vid {
			out = append(out, e.mac)
		}
	}
	return out, nil
}

// fdbEntry is one entry of a bridge's forwarding table.
type fdbEntry struct {
	port, master int // ifindexes
	vid          uint16
	mac          net.HardwareAddr
	local        bool // an address of the host's own
	learned      bool // from a frame
}

// parseFDB reads an RTM_NEWNEIGH message of a bridge.
func parseFDB(m []byte) (e fdbEntry, ok bool) {
	if len(m) < unix.SizeofNdMsg {
		return e, false
	}
	a := parseAttrs(m[unix.SizeofNdMsg:])
	// struct ndmsg: ifindex at 4, state at 8, flags at 10. Of learned entries the state is REACHABLE or STALE (fdb_to_nud).
	state, flags := binary.NativeEndian.Uint16(m[8:]), m[10]
	e = fdbEntry{
		port: int(binary.NativeEndian.Uint32(m[4:])), master: int(a.u32(netlink.NDA_MASTER)),
		vid: a.u16(netlink.NDA_VLAN), mac: net.HardwareAddr(a[netlink.NDA_LLADDR]),
		local:   state&unix.NUD_PERMANENT != 0,
		learned: state&(unix.NUD_REACHABLE|unix.NUD_STALE) != 0 && flags&netlink.NTF_EXT_LEARNED == 0,
	}
	return e, len(e.mac) == 6
}
