package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// RefreshFDB tells a bridge that frames of these senders came in by the port (an ifindex), in a VLAN of the bridge (see
// BridgePorts.VID; 0 without VLAN filtering). The bridge remembers or refreshes them as if it had seen the frames: the
// entries are dynamic, age as usual, and move here from another port.
//
// As with a frame, nothing is learned where the bridge does not: a port that does not learn (its learning or its state is
// off, or it is locked), no sender at all (a multicast or zero address). Entries that somebody has set (local, static,
// sticky, or from a control plane) stay as they are. It is about two system calls per sender. Errors: ErrNotBridged when
// the port is in no bridge, ErrNoDevice.
func (h *Handle) RefreshFDB(port int, vid uint16, senders []net.HardwareAddr) error {
	p, err := h.bridgePort(port)
	if err != nil {
		return err
	}
	if !p.Learning || p.Locked {
		return nil
	}
	for _, mac := range senders {
		if len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
			continue
		}
		if err := h.refresh(port, vid, mac); err != nil {
			return fmt.Errorf("interface: %s: forwarding entry %s: %w", p.Name, mac, err)
		}
	}
	return nil
}

func (h *Handle) refresh(port int, vid uint16, mac net.HardwareAddr) error {
	fixed, err := h.fixedEntry(port, vid, mac)
	if err != nil || fixed {
		return err
	}
	// NTF_USE: as if a frame had come (net/bridge/br_fdb.c __br_fdb_add calls br_fdb_update, which learning calls as well).
	req := h.fdbRequest(unix.RTM_NEWNEIGH, unix.NLM_F_ACK, port, vid, mac, unix.NUD_REACHABLE, netlink.NTF_USE|netlink.NTF_MASTER)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return linkErrno(err)
}

// entryMessages asks the bridge of a port for its entry of an address: no message when it has none.
func (h *Handle) entryMessages(port int, vid uint16, mac net.HardwareAddr) ([][]byte, error) {
	req := h.fdbRequest(unix.RTM_GETNEIGH, 0, port, vid, mac, 0, netlink.NTF_MASTER)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, linkErrno(err)
	}
	return msgs, nil
}

// fixedEntry reports whether the bridge has an entry that is not to be touched. NTF_USE would move even a static one, and
// of a local one the bridge would warn in the kernel's log.
func (h *Handle) fixedEntry(port int, vid uint16, mac net.HardwareAddr) (bool, error) {
	msgs, err := h.entryMessages(port, vid, mac)
	if err != nil {
		return false, err
	}
	for _, m := range msgs {
		if len(m) < unix.SizeofNdMsg {
			continue
		}
		// struct ndmsg: state at 8, flags at 10. Of dynamic entries the state is REACHABLE or STALE (fdb_to_nud).
		state, flags := binary.NativeEndian.Uint16(m[8:]), m[10]
		if state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 || flags&(netlink.NTF_EXT_LEARNED|netlink.NTF_STICKY) != 0 {
			return true, nil
		}
	}
	return false, nil
}

func (h *Handle) fdbRequest(kind, flags, port int, vid uint16, mac net.HardwareAddr, state uint16, ndFlags uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = h.raw
	req.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(port), State: state, Flags: ndFlags})
	req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, mac))
	if vid != 0 {
		req.AddData(nl.NewRtAttr(netlink.NDA_VLAN, nl.Uint16Attr(vid)))
	}
	return req
}
