package datapath

import (
	"encoding/binary"
	"net/netip"

	"github.com/rscctl/rscctl/flowtable/packet"
)

// Flow is the ends of an IP packet. The ports are 0 where it has none that can be read.
type Flow struct{ Src, Dst netip.AddrPort }

const (
	protoTCP = 6
	protoUDP = 17
)

// FlowOf reads the flow of a frame of size bytes from its first ones. ok is false for a frame that is not IP, or too short.
func FlowOf(head []byte, size int) (f Flow, ok bool) {
	var in packet.Info
	packet.ParseHead(head, size, &in)
	var src, dst netip.Addr
	var proto byte
	ports := int(in.L4)
	switch l3 := int(in.L3); {
	case in.Family == 4 && len(head) >= l3+20:
		ip := head[l3:]
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		proto = ip[9]
		if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 { // not the first fragment
			proto = 0
		}
		if !in.Keyed {
			ports = l3 + 4*int(ip[0]&15)
		}
	case in.Family == 6 && len(head) >= l3+40:
		ip := head[l3:]
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		proto = ip[6]
		if !in.Keyed {
			ports = l3 + 40
		}
	default:
		return f, false
	}
	var from, to uint16
	if (in.Keyed || proto == protoTCP || proto == protoUDP) && len(head) >= ports+4 {
		from, to = binary.BigEndian.Uint16(head[ports:]), binary.BigEndian.Uint16(head[ports+2:])
	}
	return Flow{netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)}, true
}

// Endpoint is one end of a flow. An invalid Addr is any, and so is Port 0.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
}

func (e Endpoint) is(a netip.AddrPort) bool {
	return (!e.Addr.IsValid() || e.Addr == a.Addr()) && (e.Port == 0 || e.Port == a.Port())
}

// FlowMatch chooses flows by their ends, in either direction. The zero value chooses every frame, also one that is not IP.
type FlowMatch struct{ A, B Endpoint }

// hears tells whether a frame's flow is chosen. Its headers are in the first fragment.
func (m *FlowMatch) hears(frags [][]byte, size int) bool {
	if *m == (FlowMatch{}) {
		return true
	}
	if len(frags) == 0 {
		return false
	}
	f, ok := FlowOf(frags[0], size)
	return ok && (m.A.is(f.Src) && m.B.is(f.Dst) || m.A.is(f.Dst) && m.B.is(f.Src))
}
