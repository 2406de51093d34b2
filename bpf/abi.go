package bpf

import (
	"encoding/binary"
	"net/netip"
)

// PortKey tells the VMs of one interface apart. VLAN is the 802.1Q VLAN id in host byte order, 0 for untagged (and for
// priority-tagged frames, whose id is 0). It mirrors struct port_key in abi.h.
type PortKey struct {
	VLAN uint16
	MAC  [6]byte
}

// MaxPorts is how many VMs of one interface have a place at the same time.
const MaxPorts = 1 << portBits // mirrors MAX_PORTS in abi.h

const portBits = 8

// PortID is what the program knows a VM by: its place below MaxPorts, and how many VMs had that place before it. A place is
// given out again when its VM has left; an id is not, for 2^24 VMs of a place. So what still carries the id of a VM that left, in a
// ring or a map, is never taken for the VM that has its place now.
func PortID(index, generation uint32) uint32 { return generation<<portBits | index&(MaxPorts-1) }

// PortIndex is the place in a PortID.
func PortIndex(id uint32) uint32 { return id & (MaxPorts - 1) }

// PortValue is what the program does with the frames of a VM. It mirrors struct port_value in abi.h.
type PortValue struct {
	Port  uint32 // PortID, handed back in Meta
	Flags uint32 // FlagSteer and what narrows it
}

// Bits of PortValue.Flags. What they keep from the socket is counted (TCP) and passed to the kernel as it came.
const (
	FlagSteer    = 1 << 0 // the VM's frames go to AF_XDP
	FlagTCPOnly  = 1 << 1 // of them only TCP with readable ports and not fragmented
	FlagNoV4     = 1 << 2 // with FlagTCPOnly: no IPv4
	FlagNoV6     = 1 << 3 // with FlagTCPOnly: no IPv6
	FlagExcludes = 1 << 4 // with FlagTCPOnly: not the TCP ports of SetExcluded
)

// excludedKey is a TCP port of either end that a VM's steering leaves alone. It mirrors struct excluded_key in abi.h.
type excludedKey struct {
	Port    uint32 // PortValue.Port
	TCPPort uint16 // host byte order
	_       uint16
}

// NumVerdicts is the number of parse verdicts; the numbers and names are those of flowtable/packet.
const NumVerdicts = 11

// Values of FlowKey.Dir.
const (
	DirToGuest = 0 // from the wire to the VM, counted by the XDP program
	DirToWire  = 1 // from the VM, counted by the TC program on its tap
)

// FlowKey is one direction of one TCP connection of the VM whose map it is in. It mirrors struct flow_key in abi.h.
type FlowKey struct {
	SrcPort uint16 // host byte order
	DstPort uint16
	SrcIP   [16]byte // network order; IPv4 in the first 4 bytes, the rest 0
	DstIP   [16]byte
	Family  uint8 // 4 or 6
	Dir     uint8 // DirToGuest or DirToWire
	_       uint16
}

// Src returns the sender's address and port.
func (k *FlowKey) Src() netip.AddrPort { return addrPort(k.Family, k.SrcIP, k.SrcPort) }

// Dst returns the receiver's address and port.
func (k *FlowKey) Dst() netip.AddrPort { return addrPort(k.Family, k.DstIP, k.DstPort) }

func addrPort(family uint8, ip [16]byte, port uint16) netip.AddrPort {
	if family == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[:4])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(ip), port)
}

// FlowStats are the counters of one flow. It mirrors struct flow_stats in abi.h.
type FlowStats struct {
	Bytes        uint64              // whole frames, from Ethernet on
	PayloadBytes uint64              // TCP payload
	FirstNS      uint64              // first and last frame, CLOCK_MONOTONIC in nanoseconds
	LastNS       uint64              //
	TCPFlags     uint32              // every flag seen, ORed: byte 13 of the TCP header
	_            uint32              //
	Verdicts     [NumVerdicts]uint64 // packets by parse verdict
}

// Packets returns the number of frames counted: every one has exactly one verdict.
func (s *FlowStats) Packets() uint64 {
	var n uint64
	for _, v := range s.Verdicts {
		n += v
	}
	return n
}

// VerdictName returns the name of parse verdict v, as flowtable/packet prints it, "" when out of range.
func VerdictName(v int) string {
	if v < 0 || v >= NumVerdicts {
		return ""
	}
	return verdictNames[v]
}

var verdictNames = [NumVerdicts]string{"ok", "not_ip", "not_tcp", "vlan_stack", "malformed", "truncated", "trailer", "fragment", "ip_options", "ext_header", "reserved_flag"}

// MetaSize is the number of bytes in front of a steered frame that ParseMeta reads.
const MetaSize = 32

// metaMagic starts every metadata block ("RSC1" in memory). It mirrors META_MAGIC in abi.h.
const metaMagic = 0x31435352

// Bits of Meta.Flags.
const (
	MetaTagged      = 1 << 0 // an 802.1Q tag is in the frame; TCI is its
	MetaKeyed       = 1 << 1 // addresses and TCP ports are readable: the frame belongs to a flow
	MetaAccelerated = 1 << 2 // the tag was taken out of the frame on its way; TCI is its
)

// Meta is what the program found out about a frame. Offsets count from the frame's first byte; those of headers that
// were not reached are 0. It mirrors struct frame_meta in abi.h.
type Meta struct {
	Port       uint32 // PortID
	L3         uint16
	L4         uint16
	Payload    uint16
	PayloadLen uint16
	TCI        uint16 // host byte order; 0 unless Flags has MetaTagged or MetaAccelerated
	Family     uint8  // 4, 6 or 0
	Verdict    uint8  // parse verdict, a packet.Verdict
	Flags      uint8
	TCPFlags   uint8 // byte 13 of the TCP header
	// Tickets of the frame, of its VM and of its queue; see Shares.Took. 0 where the queue has no shares.
	VMTicket, QueueTicket uint16
	Hash                  uint32 // of addresses and ports, 0 when not keyed; not secret, not for hash tables that strangers fill
}

// ParseMeta reads the MetaSize bytes in front of a frame of frameLen bytes. It returns false when they are not the
// program's, and then the caller parses the frame itself.
//
// The bytes in front of a frame are left over from the chunk's earlier use when the driver has no room for metadata, so
// a magic word alone proves nothing: the caller clears it when it gives a chunk back, and the frame's
// length must agree. It does not allocate.
func ParseMeta(before []byte, frameLen int, m *Meta) bool {
	if len(before) < MetaSize {
		return false
	}
	le := binary.LittleEndian
	b := before[:MetaSize]
	if le.Uint32(b) != metaMagic || int(le.Uint16(b[8:])) != frameLen {
		return false
	}
	m.Port = le.Uint32(b[4:])
	m.QueueTicket = le.Uint16(b[10:])
	m.L3 = le.Uint16(b[12:])
	m.L4 = le.Uint16(b[14:])
	m.Payload = le.Uint16(b[16:])
	m.PayloadLen = le.Uint16(b[18:])
	m.TCI = le.Uint16(b[20:])
	m.Family = b[22]
	m.Verdict = b[23]
	m.Flags = b[24]
	m.TCPFlags = b[25]
	m.VMTicket = le.Uint16(b[26:])
	m.Hash = le.Uint32(b[28:])
	return true
}
