package datapath

import (
	"encoding/binary"
	"slices"

	"github.com/rscctl/rscctl/flowtable"
)

// What a VM that is kept to its IP addresses may send: what libvirt's filter clean-traffic and OpenStack's port security let a VM
// send, and nothing that they would have to guess about. docs/security.md has the promise; the rules are
//
//	EtherTypes  IPv4, IPv6, ARP, and the RARP by which QEMU announces a VM that has moved. No LLC, no PPPoE, no MPLS: an address
//	            that is not read is not enforced
//	IPv4        the source is the VM's; or 0.0.0.0 in a DHCP client's broadcast. Nothing to a DHCP client's port
//	IPv6        the source is the VM's, or the link-local address of its MAC address, as OpenStack has it (every stack has to have a
//	            link-local address before anything else, and one made so can be nobody else's); or :: in what a station sends
//	            before it has an address: DAD, router solicitations, MLD reports. Nothing to a DHCP client's port, no router
//	            advertisement, no redirect
//	ARP, ND     the sender's hardware address is the VM's, and the protocol address that it claims. A probe (sender 0.0.0.0) and DAD
//	            (source ::) claim an address as well: heard by a station that is probing for it, they take it away (RFC 5227, 2.1.1;
//	            RFC 4862, 5.4.3)
//	fragments   headers up to the transport's ports are in the first, or it is refused (RFC 7112); later ones have an IP source, and
//	            nothing else to judge. Neighbour discovery in fragments is refused (RFC 6980)
//	extension   hop-by-hop, routing, destination options, AH, mobility, HIP and shim6 are passed over, eight at most. What follows
//	headers     any other header is that one's payload
//
// What a frame means to a receiver is read from the bytes that are sent: reach says how far, so that nothing is written there
// afterwards.

const (
	ipProtoUDP    = 17
	ipProtoICMPv6 = 58

	maxExtHeaders = 8

	arpLen     = 28
	dhcpServer = 67
	dhcpClient = 68
	dhcp6      = 546 // the client's

	icmpMLDReport  = 131
	icmpMLDDone    = 132
	icmpRS         = 133
	icmpRA         = 134
	icmpNS         = 135
	icmpNA         = 136
	icmpRedirect   = 137
	icmpINDRequest = 141 // inverse neighbour discovery (RFC 3122)
	icmpINDAnswer  = 142
	icmpMLD2Report = 143
)

// refusesSource judges a frame, without a tag, of a VM that is kept to its addresses. reach is where the bytes end that were looked
// at. The frame has an Ethernet header, whose source address has been judged; it may be the beginning of one, and then whole is false: what is
// not here to be judged is refused.
func (p *port) refusesSource(frame []byte, whole bool) (reach int, why flowtable.Reason, refused bool) {
	switch binary.BigEndian.Uint16(frame[2*macLen:]) {
	case etherIPv4:
		return p.refusesIPv4(frame)
	case etherIPv6:
		return p.refusesIPv6(frame, whole)
	case etherARP, etherRARP:
		return p.refusesARP(frame)
	}
	return 0, flowtable.ReasonEtherType, true
}

func (p *port) refusesIPv4(frame []byte) (reach int, why flowtable.Reason, refused bool) {
	ip := frame[ethHeader:]
	if len(ip) < 20 || ip[0]>>4 != 4 {
		return 0, flowtable.ReasonMalformed, true
	}
	header := int(ip[0]&15) * 4
	if header < 20 || len(ip) < header {
		return 0, flowtable.ReasonMalformed, true
	}
	src, dst := binary.BigEndian.Uint32(ip[12:]), binary.BigEndian.Uint32(ip[16:])
	frag := binary.BigEndian.Uint16(ip[6:]) & 0x3fff // MF and offset
	reach = ethHeader + header
	if ip[9] == ipProtoUDP && frag&0x1fff == 0 {
		if len(ip) < header+8 {
			return 0, flowtable.ReasonMalformed, true
		}
		from, to := binary.BigEndian.Uint16(ip[header:]), binary.BigEndian.Uint16(ip[header+2:])
		reach += 4
		switch {
		case to == dhcpClient:
			return reach, flowtable.ReasonDHCPServer, true
		case src == 0 && dst == 0xffffffff && from == dhcpClient && to == dhcpServer && frag == 0:
			return reach, 0, false
		}
	}
	return reach, flowtable.ReasonSourceIP, !p.Sources.allows4(src)
}

func (p *port) refusesARP(frame []byte) (reach int, why flowtable.Reason, refused bool) {
	a := frame[ethHeader:]
	if len(a) < arpLen {
		return 0, flowtable.ReasonMalformed, true
	}
	op := binary.BigEndian.Uint16(a[6:])
	sha, spa, tha, tpa := [macLen]byte(a[8:]), binary.BigEndian.Uint32(a[14:]), [macLen]byte(a[18:]), binary.BigEndian.Uint32(a[24:])
	ok := binary.BigEndian.Uint64(a)>>16 == 0x000108000604 && p.speaksFor(frame, sha) // Ethernet, IPv4, and their lengths
	if binary.BigEndian.Uint16(frame[2*macLen:]) == etherRARP {
		ok = ok && op == 3 && tha == sha && spa == 0 && tpa == 0
	} else {
		ok = ok && (op == 1 || op == 2) && (p.Sources.allows4(spa) || op == 1 && spa == 0 && p.Sources.allows4(tpa))
	}
	return ethHeader + arpLen, flowtable.ReasonSourceARP, !ok
}

// speaksFor reports whether the sender of a frame may say that a hardware address is its own.
func (p *port) speaksFor(frame []byte, mac [macLen]byte) bool {
	return mac == [macLen]byte(frame[macLen:]) || p.owns(mac)
}

// has6 reports whether an IPv6 address is the VM's.
func (p *port) has6(a ip6) bool {
	return p.Sources.allows6(a) || a == linkLocal(p.Addr.MAC) || slices.ContainsFunc(p.MACs, func(m [macLen]byte) bool { return a == linkLocal(m) })
}

func (p *port) refusesIPv6(frame []byte, whole bool) (reach int, why flowtable.Reason, refused bool) {
	ip := frame[ethHeader:]
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return 0, flowtable.ReasonMalformed, true
	}
	src, dst := readIP6(ip[8:]), readIP6(ip[24:])
	if n := int(binary.BigEndian.Uint16(ip[4:])); n > 0 { // 0: a guest leaves it to its device, or a jumbogram
		ip = ip[:min(len(ip), 40+n)]
	}
	next, at := ip[6], 40
	for n := 0; isExtHeader(next); n++ {
		if n == maxExtHeaders || len(ip) < at+8 {
			return 0, flowtable.ReasonMalformed, true
		}
		size := (int(ip[at+1]) + 1) * 8
		switch next {
		case 44:
			size, whole = 8, false
			if binary.BigEndian.Uint16(ip[at+2:])&^7 != 0 { // what follows is no header
				return ethHeader + at + 8, flowtable.ReasonSourceIP, !p.has6(src)
			}
		case 51:
			size = (int(ip[at+1]) + 2) * 4
		}
		next, at = ip[at], at+size
		if len(ip) < at {
			return 0, flowtable.ReasonMalformed, true
		}
	}
	reach = ethHeader + at
	early := false // it may be sent before the station has an address
	switch next {
	case ipProtoUDP:
		if len(ip) < at+8 {
			return 0, flowtable.ReasonMalformed, true
		}
		reach += 4
		if binary.BigEndian.Uint16(ip[at+2:]) == dhcp6 {
			return reach, flowtable.ReasonDHCPServer, true
		}
	case ipProtoICMPv6:
		if len(ip) < at+4 {
			return 0, flowtable.ReasonMalformed, true
		}
		reach = ethHeader + len(ip)
		switch m := ip[at:]; m[0] {
		case icmpRA, icmpRedirect:
			return reach, flowtable.ReasonRouterAdvert, true
		case icmpRS, icmpNS, icmpNA:
			if !whole || !p.ndIsOwn(frame, m, src) {
				return reach, flowtable.ReasonSourceND, true
			}
			early = m[0] != icmpNA
		case icmpINDRequest, icmpINDAnswer:
			return reach, flowtable.ReasonSourceND, true
		case icmpMLDReport, icmpMLDDone, icmpMLD2Report:
			early = whole
		}
	}
	if early && src.unspecified() && dst.hi>>48 == 0xff02 {
		return reach, 0, false
	}
	return reach, flowtable.ReasonSourceIP, !p.has6(src)
}

// isExtHeader reports whether a receiver looks for the next header behind an IPv6 header of this kind.
func isExtHeader(kind uint8) bool {
	switch kind {
	case 0, 43, 44, 51, 60, 135, 139, 140:
		return true
	}
	return false
}

// ndIsOwn reports whether a message of neighbour discovery, type first, speaks for the VM alone: the address that it claims, and every
// link-layer address in it.
func (p *port) ndIsOwn(frame, m []byte, src ip6) bool {
	options := 8
	if m[0] != icmpRS {
		if options = 24; len(m) < options {
			return false
		}
		claims := m[0] == icmpNA || src.unspecified()
		if claims && !p.has6(readIP6(m[8:])) {
			return false
		}
	}
	if len(m) < options {
		return false
	}
	for m = m[options:]; len(m) > 0; {
		if len(m) < 8 || m[1] == 0 || len(m) < int(m[1])*8 {
			return false
		}
		if m[0] == 1 || m[0] == 2 { // source and target link-layer address (RFC 4861, 4.6.1)
			if m[1] != 1 || src.unspecified() || !p.speaksFor(frame, [macLen]byte(m[2:])) {
				return false
			}
		}
		m = m[int(m[1])*8:]
	}
	return true
}
