package flowtable_test

import (
	"bytes"
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

// The rules of the oracle: why a packet passes, and why it does not join what is held.

func gate(c *flowtable.PortConfig, q *pt.TCP, rsc bool) string {
	family, tso := c.IPv4, c.TSO4
	if q.V6 {
		family, tso = c.IPv6, c.TSO6
	}
	switch {
	case !c.Coalesce:
		return "policy_off"
	case !family:
		return "family_off"
	case !c.GuestCsum || !tso:
		return "not_negotiated"
	}
	for _, x := range c.ExcludePorts {
		if x == q.SrcPort || x == q.DstPort {
			return "port_excluded"
		}
	}
	if len(q.Tags) > 0 && (rsc || !c.MergeVLAN) {
		return "vlan_tag"
	}
	return ""
}

// plainOptions: none, or NOP NOP timestamp.
func plainOptions(o []byte) bool {
	return len(o) == 0 || len(o) == 12 && bytes.Equal(o[:4], []byte{1, 1, 8, 10})
}

// alone tells why a packet with a sound structure neither merges nor starts; empty means that it may, or that it is a
// window update which joins h.
func alone(c *flowtable.PortConfig, q *pt.TCP, in *input, h *held, rsc bool) string {
	usual := !q.BadIP && !q.BadTCP && !q.Partial // pt.Read knows the usual form of zero only
	f := in.frame[in.info.L3:]
	check := binary.BigEndian.Uint16(in.frame[in.info.L4+16:])
	ipRight := q.V6 || !q.BadIP || binary.BigEndian.Uint16(f[10:]) == 0xffff && pt.HeaderCheck(f[:20]) == 0
	switch {
	case q.Flags&pt.SYN != 0:
		return "syn"
	case q.Flags&pt.RST != 0:
		return "rst"
	case q.Flags&pt.URG != 0:
		return "urg"
	case !ipRight:
		return "bad_ip_checksum"
	case !usual && !sound(in) && check == pt.PseudoSum(ipPacket(in)[in.info.L3:], int(in.info.L4-in.info.L3)):
		return "partial_checksum"
	case !usual && !sound(in):
		return "bad_tcp_checksum"
	case !usual && !rsc:
		return "noncanonical_checksum"
	}
	if len(q.Payload) == 0 {
		return emptyReason(q, h, rsc)
	}
	switch {
	case q.Flags&pt.CWR != 0 && !(rsc && c.ECN):
		return "cwr"
	case q.Flags&pt.ACK == 0 || q.Flags == pt.NoFlags:
		return "no_ack"
	case rsc && q.Flags&pt.FIN != 0:
		return "fin"
	case rsc && q.Flags&0xf00 != 0:
		return "tcp_flags_change"
	case rsc && !plainOptions(q.Opts):
		return "options_change"
	}
	return ""
}

func emptyReason(q *pt.TCP, h *held, rsc bool) string {
	switch {
	case q.Flags&pt.FIN != 0:
		return "fin"
	case q.Flags&pt.ACK == 0 || q.Flags == pt.NoFlags:
		return "empty"
	case h == nil:
		return "pure_ack"
	case q.Seq != h.next || int32(q.Ack-h.last.Ack) < 0:
		return "empty"
	case q.Ack != h.last.Ack:
		return "pure_ack"
	case q.Win == h.last.Win:
		return "dup_ack"
	case !rsc || q.Flags&pt.PSH != 0 || !plainOptions(q.Opts) || unequal(h, q, true) != "":
		return "window_update"
	}
	return ""
}

// unequal names the first field that must be equal and is not.
func unequal(h *held, q *pt.TCP, rsc bool) string {
	a := &h.first
	const loose = pt.PSH | pt.FIN
	switch {
	case a.DstMAC != q.DstMAC || a.SrcMAC != q.SrcMAC:
		return "mac_change"
	case len(a.Tags) > 0 && a.Tags[0] != q.Tags[0]:
		return "vlan_priority"
	case a.FlowLabel != q.FlowLabel:
		return "flow_label"
	case a.TOS>>2 != q.TOS>>2:
		return "dscp_change"
	case a.TOS != q.TOS:
		return "ecn_change"
	case !rsc && a.TTL != q.TTL:
		return "ttl_change"
	case a.NoDF != q.NoDF:
		return "df_change"
	case a.Flags&^loose != q.Flags&^loose:
		return "tcp_flags_change"
	case !rsc && a.Urgent != q.Urgent:
		return "urgent_pointer"
	case !rsc && a.Ack != q.Ack:
		return "ack_change"
	case !rsc && a.Win != q.Win:
		return "window_change"
	case !bytes.Equal(a.Opts, q.Opts):
		return "options_change"
	}
	return ""
}

// mismatch tells why data does not join h.
func mismatch(c *flowtable.PortConfig, h *held, q *pt.TCP, rsc bool) string {
	if r := unequal(h, q, rsc); r != "" {
		return r
	}
	limit := c.MaxBytes
	if limit == 0 {
		limit = 65535
	}
	eth := 14
	if len(q.Tags) > 0 {
		limit, eth = min(limit, 65532), 18
	}
	if c.MaxFrame > 0 {
		limit = min(limit, c.MaxFrame-eth)
	}
	ahead := int32(q.Seq - h.next)
	switch {
	case int32(q.Ack-h.last.Ack) < 0:
		return "ack_change"
	case ahead > 0:
		return "gap"
	case ahead < 0:
		return "retransmit"
	case !rsc && !q.V6 && !idFollows(c, append(append([]uint16(nil), h.ids...), q.ID), !q.NoDF):
		return "ip_id"
	case !rsc && len(q.Payload) > h.mss:
		return "larger"
	case h.ipLen+len(q.Payload) > limit:
		return "max_bytes"
	}
	return ""
}

// idFollows: all count by one, or, with DF, all are equal.
func idFollows(c *flowtable.PortConfig, ids []uint16, df bool) bool {
	counts, stands := true, df && c.FixedID
	for i, id := range ids {
		counts = counts && id == ids[0]+uint16(i)
		stands = stands && id == ids[0]
	}
	return counts || stands
}
