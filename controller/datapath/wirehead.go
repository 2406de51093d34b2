package datapath

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// A frame that the kernel cuts, or whose checksum it completes, leaves with the headers that were judged: the first bytes are the worker's
// private copy, and what the kernel is told of them (virtio_net_hdr) is read from that copy. Of the guest's own header only gso_size,
// and whether there is something to cut or to sum, count. Were its csum_start believed, the kernel would write where the guest says,
// for example over the source address.
const (
	// HeadRoom is how many bytes of a guest's frame are private, at least: vhost.Config.TxHead. The longest headers that a Segmenter
	// reads (256 bytes), with a priority tag that the guest put among them.
	HeadRoom = 264

	headSlot     = HeadRoom + vlanTag // with the tag of an access port
	minMSS       = 48                 // tcp_min_snd_mss of Linux
	maxKernelCut = 65535/minMSS + 1   // packets of a TSO frame that the kernel cuts
	protoTCPCsum = 16                 // where a checksum lies in its header
	protoUDPCsum = 6
	tcpMinHeader = 20
	maxDatagrams = 128 // of a guest's UDP frame: UDP_MAX_SEGMENTS of Linux since 6.9
	fewDatagrams = 64  // before
	udpHeader    = 8
	udpLenAt     = 4
	ipv4Min      = 20
	ipv6Len      = 40
	lenAndFields = 6 // where the IPv4 fields of fragmentation are
)

// wireHead is a frame's beginning on its way to the kernel, and what the kernel is told of it.
type wireHead struct {
	bytes   []byte        // as they leave, the tag in place
	hdr     virtio.NetHdr //
	packets int           // that will be on the wire
}

// buildGSO makes a guest's TSO or USO frame of total bytes ready: h.bytes are its first ones, which buildGSO changes to what cutting goes by. A
// frame that is one packet already becomes one. cut is for its use. MTU is the wire's.
func (h *wireHead) buildGSO(total int, g flowtable.GSO, mtu int, cut *flowtable.Segmenter) (why flowtable.Reason, ok bool) {
	if err := cut.Dissect(h.bytes, total, g); err != nil {
		return flowtable.ReasonMalformed, false
	}
	l3, l4 := cut.Offsets()
	end := cut.HeaderLen()
	if h.packets = cut.Count(); h.packets > mostPackets(g.Type, maxKernelCut) {
		return flowtable.ReasonBadLength, false
	}
	if min(total, end+int(g.Size)) > mtu+ethHeader {
		return flowtable.ReasonBadLength, false
	}
	ip, l4h := h.bytes[l3:l4], h.bytes[l4:end]
	if ip[0]>>4 == 4 { // some guests leave length and sum to their device
		binary.BigEndian.PutUint16(ip[2:], uint16(total-l3))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip, 0))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(total-l3-ipv6Len))
	}
	udp, place := g.Type == virtio.GSOUDPL4, protoTCPCsum
	if udp {
		place = protoUDPCsum
		binary.BigEndian.PutUint16(l4h[udpLenAt:], uint16(total-l4))
	}
	binary.BigEndian.PutUint16(l4h[place:], cut.PartialChecksum())
	h.hdr = virtio.NetHdr{
		Flags: virtio.HdrNeedsCsum, HdrLen: uint16(end), CsumStart: uint16(l4), CsumOffset: uint16(place),
	}
	if h.packets > 1 {
		h.hdr.GSOType, h.hdr.GSOSize = g.Type&^virtio.GSOECN, g.Size
		if !udp && l4h[13]&packet.CWR != 0 { // it belongs to the first packet alone, and some devices want to be told
			h.hdr.GSOType |= virtio.GSOECN
		}
	}
	return 0, true
}

// mostPackets is how many packets a frame of that gso_type may become, where one of TCP may become so many.
func mostPackets(gsoType uint8, tcp int) int {
	if gsoType == virtio.GSOUDPL4 {
		return maxDatagrams
	}
	return tcp
}

// buildSum makes a frame of total bytes ready that is a packet already, with a checksum to be completed from start on, into the two
// bytes at. false: not where TCP or UDP has its checksum, so the kernel is not to be told.
func (h *wireHead) buildSum(total, start, at int) bool {
	l4, _, ok := sumPlace(h.bytes, total, start, at)
	if !ok {
		return false
	}
	h.packets = 1
	h.hdr = virtio.NetHdr{Flags: virtio.HdrNeedsCsum, CsumStart: uint16(l4), CsumOffset: uint16(at - l4)}
	return true
}

// sumPlace tells whether a checksum of a packet of total bytes that is to be completed from start on, into the two bytes at, is TCP's or UDP's, where that
// has it.
func sumPlace(head []byte, total, start, at int) (l4 int, proto byte, ok bool) {
	l4, proto, ok = transportOf(head)
	switch {
	case !ok || start != l4:
		ok = false
	case proto == protoTCP:
		ok = at == l4+protoTCPCsum && total >= l4+tcpMinHeader
	case proto == protoUDP:
		ok = at == l4+protoUDPCsum && total >= l4+udpHeader
	default:
		ok = false
	}
	return l4, proto, ok
}

// transportOf finds the transport header behind Ethernet and an IP header without extensions. Only bytes that are there count.
func transportOf(head []byte) (l4 int, proto byte, ok bool) {
	if len(head) < ethHeader+ipv4Min {
		return 0, 0, false
	}
	ip := head[ethHeader:]
	switch binary.BigEndian.Uint16(head[2*macLen:]) {
	case etherIPv4:
		l4 = ethHeader + 4*int(ip[0]&15)
		if ip[0]>>4 != 4 || l4 < ethHeader+ipv4Min || binary.BigEndian.Uint16(ip[lenAndFields:])&0x3fff != 0 { // a fragment
			return 0, 0, false
		}
		proto = ip[9]
	case etherIPv6:
		if ip[0]>>4 != 6 || len(ip) < ipv6Len {
			return 0, 0, false
		}
		l4, proto = ethHeader+ipv6Len, ip[6]
	default:
		return 0, 0, false
	}
	return l4, proto, len(head) >= l4+udpHeader
}

// tag puts the tag of an access port behind the addresses. h.bytes has room for it.
func (h *wireHead) tag(tci uint16) {
	n := insertTag(h.bytes[:len(h.bytes)+vlanTag], len(h.bytes), tci)
	h.bytes = h.bytes[:n]
	if h.hdr.Flags&virtio.HdrNeedsCsum == 0 {
		return
	}
	h.hdr.CsumStart += vlanTag
	if h.hdr.HdrLen > 0 {
		h.hdr.HdrLen += vlanTag
	}
}
