package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attrs are netlink attributes by type. A missing one reads as zero, as the kernel leaves out what it does not know.
type attrs map[uint16][]byte

func parseAttrs(b []byte) attrs {
	a := attrs{}
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return a
	}
	for _, at := range list {
		a[at.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = at.Value
	}
	return a
}

func (a attrs) nested(kind uint16) attrs { return parseAttrs(a[kind]) }

func (a attrs) u8(kind uint16) uint8 {
	if v := a[kind]; len(v) >= 1 {
		return v[0]
	}
	return 0
}

func (a attrs) u16(kind uint16) uint16 {
	if v := a[kind]; len(v) >= 2 {
		return binary.NativeEndian.Uint16(v)
	}
	return 0
}

// be16 is u16 of an attribute in network byte order: a protocol.
func (a attrs) be16(kind uint16) uint16 {
	if v := a[kind]; len(v) >= 2 {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (a attrs) u32(kind uint16) uint32 {
	if v := a[kind]; len(v) >= 4 {
		return binary.NativeEndian.Uint32(v)
	}
	return 0
}

// be32 is u32 of an attribute in network byte order, as netfilter has them.
func (a attrs) be32(kind uint16) uint32 {
	if v := a[kind]; len(v) >= 4 {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (a attrs) text(kind uint16) string { return cString(a[kind]) }

// linkAttrs reads all attributes of an interface (RTM_GETLINK), or returns ErrNoDevice.
func (h *Handle) linkAttrs(index int) (attrs, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.Sockets = h.raw
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, linkError(fmt.Sprintf("index %d", index), err)
	}
	if len(msgs) != 1 || len(msgs[0]) < unix.SizeofIfInfomsg {
		return nil, linkError(fmt.Sprintf("index %d", index), unix.ENODEV)
	}
	return parseAttrs(msgs[0][unix.SizeofIfInfomsg:]), nil
}

// allLinks reads all interfaces of the namespace. A list that changed while it was read is read again.
func (h *Handle) allLinks() (linkSet, error) { return h.linksOf(0) }

// linksOf is allLinks of those whose master is the given one, 0: of all. A kernel may tell of others too.
func (h *Handle) linksOf(master int) (linkSet, error) {
	var msgs [][]byte
	err := error(nl.ErrDumpInterrupted)
	for range 10 {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.Sockets = h.raw
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		if master != 0 {
			req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
		}
		if msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	all := linkSet{}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		// struct ifinfomsg: type at 2, index at 4, flags at 8.
		hw, index, flags := binary.NativeEndian.Uint16(m[2:]), int(int32(binary.NativeEndian.Uint32(m[4:]))), binary.NativeEndian.Uint32(m[8:])
		all[index] = parseLink(index, hw, flags, parseAttrs(m[unix.SizeofIfInfomsg:]))
	}
	return all, nil
}
