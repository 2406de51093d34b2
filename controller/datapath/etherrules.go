package datapath

import (
	"encoding/binary"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// What a frame's Ethernet header must be like for the frame to pass between a VM and anybody else. Linux' bridge and an access
// port of a switch would enforce it; docs/architecture.md has the table, line by line.
const (
	macLen  = 6
	vlanTag = 4
	vlanID  = 0x0fff // of a TCI; the rest is priority (PCP) and drop eligibility (DEI)

	etherIPv4    = 0x0800
	etherARP     = 0x0806
	etherRARP    = 0x8035
	etherVLAN    = 0x8100
	etherIPv6    = 0x86dd
	etherControl = 0x8808 // PAUSE and its kin (IEEE 802.3, 31A)
	etherLeast   = 0x0600 // what is less is the length of an LLC frame

	minWire = 60 // bytes of the shortest frame without FCS (IEEE 802.3, 4.2.3.3)

	// rulesReach is where the bytes end that a rule looks at, behind the tag that is taken off first. What is written into a
	// frame after the rules have seen it lies behind.
	rulesReach = 22
)

// outgoing is a frame of a guest that the rules have passed.
type outgoing struct {
	data      []byte // without a tag, its private part; of a frame that they refuse, as far as they came
	from      *egress
	tci       uint16 // of the tag that it gets on the wire, 0: none
	group     bool   // to a group address
	host      bool   // to the host, or somebody behind it
	partial   bool   // its checksum has to be completed:
	csumStart int    // from here on
	csumAt    int    // into the two bytes here
	packet    int    // bytes of the longest packet that it becomes, without a tag
}

// judge looks at a guest's frame by the bytes that will be sent, and takes a priority tag off. Where it refuses, only o.data means something.
func (w *Worker) judge(p *port, f *vhost.TxFrame, o *outgoing) (why flowtable.Reason, refused bool) {
	data := f.Data
	o.data = data
	if len(data) < ethHeader {
		return flowtable.ReasonBadLength, true
	}
	if src := [macLen]byte(data[macLen:]); !p.owns(src) && (!p.AllowSpoof || w.impersonates(p, src)) {
		return flowtable.ReasonSourceMAC, true
	}
	o.tci, o.csumStart = p.Addr.VLAN, int(f.Hdr.CsumStart)
	kind := binary.BigEndian.Uint16(data[2*macLen:])
	if kind == etherVLAN {
		tci, ok := priorityTag(data)
		if !ok {
			return flowtable.ReasonVLANForeign, true
		}
		copy(data[vlanTag:], data[:2*macLen])
		data = data[vlanTag:]
		o.data = data
		kind = binary.BigEndian.Uint16(data[2*macLen:])
		o.tci |= tci
		o.csumStart -= vlanTag
	}
	if kind != etherIPv4 && kind != etherIPv6 {
		if why, refused = refusesType(data, 2*macLen); refused {
			return why, true
		}
	}
	dst := [macLen]byte(data)
	o.group = dst[0]&1 != 0
	switch {
	case o.group && isControl(dst):
		return flowtable.ReasonControlFrame, true
	case p.owns(dst):
		return flowtable.ReasonHairpin, true
	}
	reach := rulesReach
	if p.Sources != nil {
		far, why, refused := p.refusesSource(data, len(f.Rest) == 0)
		if refused {
			return why, true
		}
		reach = max(reach, far)
	}
	// The checksum must not land on what was judged: a guest chooses its place, and with the rest of the frame its value. In the
	// packets of a TSO frame it is written where TCP has it.
	if o.partial = f.Hdr.Flags&virtio.HdrNeedsCsum != 0 && f.Hdr.GSOType == virtio.GSONone; o.partial {
		o.csumAt = o.csumStart + int(f.Hdr.CsumOffset)
		if o.csumAt < reach {
			return flowtable.ReasonMalformed, true
		}
	}
	return 0, false
}

// impersonates reports whether a source address is one that no VM may use, also one that may use foreign addresses: no
// station's, the host's, or that of another VM.
func (w *Worker) impersonates(p *port, src [macLen]byte) bool {
	if src[0]&1 != 0 || src == [macLen]byte{} || src == w.cfg.Own || w.host.Stations != nil && w.host.Stations.isOwn(src) {
		return true
	}
	q := w.byAddr[Addr{VLAN: p.Addr.VLAN, MAC: src}]
	return q != nil && q != p
}

// priorityTag returns the TCI of the 802.1Q tag in a frame; ok is false when it names a VLAN, or is cut short.
func priorityTag(frame []byte) (tci uint16, ok bool) {
	if len(frame) < ethHeader+vlanTag {
		return 0, false
	}
	tci = binary.BigEndian.Uint16(frame[2*macLen+2:])
	return tci, tci&vlanID == 0
}

// refusesType judges the EtherType at a place in a frame, where it is no tag that the VLAN's own rules have taken off.
func refusesType(frame []byte, at int) (why flowtable.Reason, refused bool) {
	if len(frame) < at+2 {
		return flowtable.ReasonBadLength, true
	}
	switch kind := binary.BigEndian.Uint16(frame[at:]); {
	case kind == etherIPv4, kind == etherIPv6, kind == etherARP:
		return 0, false
	case isTag(kind), kind < etherLeast && hidesTag(frame[at+2:]):
		return flowtable.ReasonVLANForeign, true
	case kind == etherControl:
		return flowtable.ReasonControlFrame, true
	}
	return 0, false
}

// isTag reports whether a switch may take an EtherType for a tag that says where a frame belongs.
func isTag(kind uint16) bool {
	switch kind {
	case etherVLAN,
		0x88a8,                 // S-tag (IEEE 802.1ad)
		0x88e7,                 // I-tag (802.1ah)
		0x9100, 0x9200, 0x9300, // S-tags before there was 802.1ad
		0x893f, 0x8926, // a port behind the switch: E-tag (802.1BR), VN-Tag
		0x8903, 0x8909, // a place in a fabric, a security group: Cisco
		0xdada: // a port of a switch chip: Marvell's EDSA
		return true
	}
	return false
}

// hidesTag reports whether an LLC frame has a SNAP header that names a tag's EtherType (RFC 1042). Some receivers look through
// it, and filters often do not (CERT/CC VU#855201).
func hidesTag(llc []byte) bool {
	return len(llc) >= 8 && llc[0] == 0xaa && llc[1] == 0xaa && llc[2] == 3 && isTag(binary.BigEndian.Uint16(llc[6:]))
}

// isControl reports whether a group address is one by which switches speak to each other and to the stations at their ports.
func isControl(dst [macLen]byte) bool {
	switch {
	case dst[0] == 0x01 && dst[1] == 0x80 && dst[2] == 0xc2 && dst[3] == 0 && dst[4] == 0:
		// 00 to 0f: BPDU, PAUSE, LACP, 802.1X, LLDP (IEEE 802.1Q, table 8-1). 20 to 2f: MVRP, which registers VLANs (table 10-1).
		return dst[5]&0xf0 == 0x00 || dst[5]&0xf0 == 0x20
	case dst[0]|2 == 0x03 && dst[1] == 0x00 && dst[2] == 0x0c: // Cisco's: CDP, VTP, DTP, PVST+, ISL
		return true
	}
	return false
}

// refusesGroup judges a group frame from the wire, whose VLAN's tag is out of it.
func refusesGroup(frame []byte) (why flowtable.Reason, refused bool) {
	switch {
	case len(frame) < ethHeader:
		return flowtable.ReasonBadLength, true
	case isControl([macLen]byte(frame)):
		return flowtable.ReasonControlFrame, true
	}
	return refusesType(frame, 2*macLen)
}

// refusesTags judges what stands behind the addresses of a frame for a VM, and behind the tag of its VLAN.
func refusesTags(frame []byte, i *packet.Info) (why flowtable.Reason, refused bool) {
	if i.Verdict != packet.NotIP && i.Verdict != packet.VLANStack {
		return 0, false
	}
	at := 2 * macLen
	if i.Tagged {
		at += vlanTag
	}
	return refusesType(frame, at)
}

// pad makes a runt in a chunk as long as the shortest frame and returns the new length. The chunk may have been another VM's.
func pad(buf []byte, n int) int {
	if n < minWire {
		clear(buf[n:minWire])
		n = minWire
	}
	return n
}
