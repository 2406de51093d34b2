package bpf

import "net/netip"

// PortKey tells the VMs of one interface apart. VLAN is the 802.1Q VLAN id in host byte order, 0 for untagged (and for
// priority-tagged frames, whose id is 0). It mirrors struct port_key in abi.h.
type PortKey struct {
	VLAN uint16
	MAC  [6]byte
}

// PortValue is what the program does with the frames of a VM. It mirrors struct port_value in abi.h.
type PortValue struct {
	Port  uint32 // PortID, handed back in Meta
	Flags uint32 // FlagSteer and what narrows it
}

// Bits of PortValue.Flags. What they keep from the socket is counted (TCP) and passed to the kernel as it came.
const (
	FlagSteer    = 1 << 0 // the VM's frames go to AF_XDP
	FlagTCPOnly  = 1 << 1 // of them only TCP with readable ports and not fragmented, and what FlagUDP4 and FlagUDP6 add
	FlagNoV4     = 1 << 2 // with FlagTCPOnly: no IPv4
	FlagNoV6     = 1 << 3 // with FlagTCPOnly: no IPv6
	FlagExcludes = 1 << 4 // with FlagTCPOnly: not the ports of SetExcluded
	FlagFailOpen = 1 << 5 // the kernel has a way to the VM too, and gets its frames while the worker hangs
	FlagUDP4     = 1 << 6 // with FlagTCPOnly: UDP over IPv4 too, unfragmented and without options
	FlagUDP6     = 1 << 7 // the same over IPv6, without extension headers
)

// excludedKey is a port of either end that a VM's steering leaves alone. It mirrors struct excluded_key in abi.h.
type excludedKey struct {
	Port    uint32 // PortValue.Port
	TCPPort uint16 // host byte order
	_       uint16
}

// device is what XDP must know of its interface. It mirrors struct device in abi.h.
type device struct {
	Backup uint32
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
