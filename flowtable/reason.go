package flowtable

// Reason says why a frame left when it did, or why a packet was passed alone or dropped. The names are fixed: the same
// word stands in counters, in replay's output and in the documentation.
type Reason uint8

// Why a merged or held frame left. A packet that closes a flow and then leaves alone carries the same reason.
const (
	ReasonPSH             Reason = iota // psh
	ReasonFIN                           // fin
	ReasonShort                         // segment smaller than gso_size
	ReasonLarger                        // segment larger than the first
	ReasonGap                           // sequence ahead of what is due
	ReasonRetransmit                    // sequence behind it, overlap
	ReasonACKChange                     // acknowledgement number
	ReasonWindowChange                  // window
	ReasonTCPFlagsChange                // ECE, NS and reserved bits, CWR
	ReasonOptionsChange                 // TCP options, or options the profile does not merge
	ReasonUrgentPointer                 // urgent pointer
	ReasonTTLChange                     // TTL or hop limit
	ReasonDSCPChange                    // upper six bits of TOS or traffic class
	ReasonECNChange                     // lower two
	ReasonDFChange                      // don't fragment
	ReasonIPID                          // IPv4 ID neither counts nor stands as the train's
	ReasonFlowLabel                     // IPv6 flow label
	ReasonMACChange                     // either Ethernet address
	ReasonVLANPriority                  // same VLAN, other priority or DEI
	ReasonMaxBytes                      // the next segment would pass the length limit
	ReasonMaxSegments                   // as many segments as allowed
	ReasonDeadline                      // held for as long as allowed
	ReasonBurstEnd                      // hold 0: end of the burst
	ReasonPressure                      // slots or chunks exhausted: the oldest goes first
	ReasonPolicy                        // the port's configuration changed
	ReasonStop                          // ring stop, detach, end of capture
	ReasonNotIP                         // packet.NotIP; from here on why a packet was passed alone
	ReasonNotTCP                        // packet.NotTCP
	ReasonVLANStack                     // packet.VLANStack
	ReasonVLANTag                       // tagged, and the profile or the port merges untagged frames only
	ReasonMalformed                     // packet.Malformed
	ReasonTruncated                     // packet.Truncated
	ReasonTrailer                       // packet.Trailer
	ReasonFragment                      // packet.Fragment
	ReasonIPOptions                     // packet.IPOptions
	ReasonExtHeader                     // packet.ExtHeader
	ReasonReservedFlag                  // packet.ReservedFlag
	ReasonBadIPChecksum                 // IPv4 header checksum wrong
	ReasonBadTCPChecksum                // TCP checksum wrong
	ReasonBadUDPChecksum                // UDP checksum wrong
	ReasonZeroChecksum                  // UDP checksum not used
	ReasonNoncanonical                  // checksum right, but 0xffff where 0x0000 is written
	ReasonPartialChecksum               // the TCP checksum is only the pseudo header's sum
	ReasonSYN                           // syn
	ReasonRST                           // rst
	ReasonURG                           // urg
	ReasonCWR                           // cwr
	ReasonNoACK                         // data without the ACK flag
	ReasonPureACK                       // no payload, acknowledges
	ReasonDupACK                        // no payload, repeats acknowledgement and window of the held data
	ReasonWindowUpdate                  // no payload, repeats the acknowledgement with another window
	ReasonEmpty                         // no payload, anything else
	ReasonGSOInput                      // a superframe or a partial checksum already when it came
	ReasonPortExcluded                  // source or destination TCP port is excluded
	ReasonFamilyOff                     // policy: IPv4 or IPv6 is off
	ReasonPolicyOff                     // policy: coalescing is off
	ReasonNotNegotiated                 // the guest did not negotiate GUEST_CSUM and the family's TSO
	ReasonGuestRefuses                  // the guest seems to drop superframes
	ReasonGuestNoBuffers                // the guest has too few buffers; from here on why a packet was dropped, never given by a Table
	ReasonPortDown                      // the port is not running
	ReasonSourceMAC                     // foreign source address
	ReasonVLANForeign                   // foreign VLAN tag
	ReasonBadLength                     // too long for where it goes
	ReasonControlFrame                  // between switches: PAUSE, BPDU, LACP, 802.1X, LLDP
	ReasonHairpin                       // back to the VM that it is from
	ReasonGroupShare                    // more broadcast and multicast than a VM's share
	ReasonIsolated                      // for a neighbour, where one of the two is kept from its neighbours
	ReasonSourceIP                      // from an IP address that is not the VM's
	ReasonSourceARP                     // ARP that speaks for another station, or is none of IPv4 over Ethernet
	ReasonSourceND                      // neighbour discovery that speaks for another station
	ReasonDHCPServer                    // a VM that answers DHCP clients
	ReasonRouterAdvert                  // a VM that advertises itself as a router, or redirects
	ReasonEtherType                     // neither IP nor ARP, of a VM that is kept to its addresses
	ReasonRate                          // above the rate that the VM may get
	numReasons
)

// NumReasons is the number of reasons.
const NumReasons = int(numReasons)

var reasonNames = [NumReasons]string{
	"psh", "fin", "short", "larger", "gap", "retransmit", "ack_change", "window_change", "tcp_flags_change",
	"options_change", "urgent_pointer", "ttl_change", "dscp_change", "ecn_change", "df_change", "ip_id", "flow_label",
	"mac_change", "vlan_priority", "max_bytes", "max_segments", "deadline", "burst_end", "pressure", "policy", "stop",
	"not_ip", "not_tcp", "vlan_stack", "vlan_tag", "malformed", "truncated", "trailer", "fragment", "ip_options",
	"ext_header", "reserved_flag", "bad_ip_checksum", "bad_tcp_checksum", "bad_udp_checksum", "zero_checksum", "noncanonical_checksum", "partial_checksum",
	"syn", "rst", "urg", "cwr", "no_ack", "pure_ack", "dup_ack", "window_update", "empty", "gso_input", "port_excluded",
	"family_off", "policy_off", "not_negotiated", "guest_refuses", "guest_no_buffers", "port_down", "source_mac", "vlan_foreign",
	"bad_length", "control_frame", "hairpin", "group_share", "isolated",
	"source_ip", "source_arp", "source_nd", "dhcp_server", "router_advert", "ethertype", "rate",
}

// String returns the reason's fixed name.
func (r Reason) String() string {
	if int(r) < NumReasons {
		return reasonNames[r]
	}
	return "unknown"
}
